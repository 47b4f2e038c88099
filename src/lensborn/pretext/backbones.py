"""Backbones under the names that published checkpoints use, and the one registry that knows them.

ResNet-50 (He et al., 2016) carries torchvision's key names (v1.5: the stride sits in the 3x3 convolution).
EfficientNet-Lite0 (Tan and Le, 2019; the "lite" variant without squeeze-and-excitation, with ReLU6) carries the
names of efficientnet_pytorch. A backbone maps (N, 3, S, S), normalised, to pooled features (N, width).
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lensborn import defaults

MAX_CHECKPOINT_BYTES = 8 * 2**30  # the largest published encoder that people use here has 2 GB


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut: (N, C, H, W) -> (N, 4 * planes, H / stride, W / stride)."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Identity | nn.Sequential = nn.Identity()
        if stride != 1 or inplanes != 4 * planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inplanes, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu(out + self.downsample(x))
        return result


class ResNet(nn.Module):
    """(N, 3, S, S) -> (N, 2048). `layers` are the blocks a stage; `stem` the channels of the first stage."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, layers: tuple[int, int, int, int] = (3, 4, 6, 3), stem: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inplanes = stem
        for stage, blocks in enumerate(layers):
            planes = stem * 2**stage
            stride = 1 if stage == 0 else 2
            stack = [Bottleneck(inplanes, planes, stride)]
            stack += [Bottleneck(4 * planes, planes) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*stack))
            inplanes = 4 * planes
        self.width = inplanes
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def trunk(self, x: Tensor) -> Tensor:
        """What the last stage is given."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return maps

    def last(self, maps: Tensor) -> Tensor:
        """(N, width, h, w), of which the features are the means; `maps`: see trunk."""
        found: Tensor = self.layer4(maps)
        return found

    def stages(self) -> list[list[nn.Module]]:
        """The blocks of each stage, from the input on."""
        return [list(layer) for layer in (self.layer1, self.layer2, self.layer3, self.layer4)]

    def last_stage(self) -> list[nn.Module]:
        """What makes the maps of what comes before them."""
        return self.stages()[-1]

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.last(self.trunk(x)).mean((2, 3))


def _same_convolution(cin: int, cout: int, kernel: int, stride: int, groups: int = 1) -> nn.Module:
    """TensorFlow's "same" padding for even sizes: a stride of 2 pads one pixel more at the bottom right."""
    convolution = nn.Conv2d(cin, cout, kernel, stride, groups=groups, bias=False)
    if stride == 1:
        convolution.padding = (kernel // 2, kernel // 2)
    return convolution


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (Sandler et al., 2018), with a shortcut where the shape allows it."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = cin * expand
        self.expand = expand != 1
        if self.expand:
            self._expand_conv = nn.Conv2d(cin, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, eps=1e-3, momentum=0.01)
        self.pad = nn.ZeroPad2d(_same_padding(kernel, stride))
        self._depthwise_conv = _same_convolution(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = nn.BatchNorm2d(hidden, eps=1e-3, momentum=0.01)
        self._project_conv = nn.Conv2d(hidden, cout, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(cout, eps=1e-3, momentum=0.01)
        self.act = nn.ReLU6(inplace=True)
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out = self.act(self._bn0(self._expand_conv(x))) if self.expand else x
        out = self.act(self._bn1(self._depthwise_conv(self.pad(out))))
        out = self._bn2(self._project_conv(out))
        result: Tensor = x + out if self.shortcut else out
        return result


def _same_padding(kernel: int, stride: int) -> tuple[int, int, int, int]:
    if stride == 1:
        return 0, 0, 0, 0  # the convolution pads by itself
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return before, after, before, after


#: kernel, stride, expansion, channels, repeats of each stage of EfficientNet-B0, which Lite0 shares.
_LITE0_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class EfficientNetLite0(nn.Module):
    """(N, 3, S, S), S a multiple of 32 -> (N, width), width 1280.

    With `stages` below 7 the later ones are left out and there is no last expansion; with `stem_stride` 1 nothing
    is thrown away before the first convolution has seen it (Gragnaniello et al., 2021). The tensors that remain
    keep shapes and names, so that published checkpoints load.
    """

    def __init__(self, stem_stride: int = 2, stages: int = 7) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d(_same_padding(3, stem_stride))
        self._conv_stem = _same_convolution(3, 32, 3, stem_stride)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3, momentum=0.01)
        blocks: list[nn.Module] = []
        self._ends = [0]  # of the stages, in blocks
        cin = 32
        for kernel, stride, expand, cout, repeats in _LITE0_STAGES[:stages]:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(cin, cout, kernel, stride if repeat == 0 else 1, expand))
                cin = cout
            self._ends.append(len(blocks))
        self._blocks = nn.Sequential(*blocks)
        self.width = cin
        self.whole = stages == len(_LITE0_STAGES)
        if self.whole:
            self.width = 1280
            self._conv_head = nn.Conv2d(cin, self.width, 1, bias=False)
            self._bn1 = nn.BatchNorm2d(self.width, eps=1e-3, momentum=0.01)
        self.act = nn.ReLU6(inplace=True)

    def trunk(self, x: Tensor) -> Tensor:
        """What the last stage is given."""
        maps: Tensor = self._blocks[: self._ends[-2]](self.act(self._bn0(self._conv_stem(self.pad(x)))))
        return maps

    def last(self, maps: Tensor) -> Tensor:
        """(N, width, h, w), of which the features are the means; `maps`: see trunk."""
        found: Tensor = self._blocks[self._ends[-2] :](maps)
        return self.act(self._bn1(self._conv_head(found))) if self.whole else found

    def stages(self) -> list[list[nn.Module]]:
        """The blocks of each stage, from the input on; the last expansion is none of them."""
        blocks = list(self._blocks)
        return [blocks[begin:end] for begin, end in pairwise(self._ends)]

    def last_stage(self) -> list[nn.Module]:
        """What makes the maps of what comes before them."""
        head = [self._conv_head, self._bn1] if self.whole else []
        return [*self.stages()[-1], *head]

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.last(self.trunk(x)).mean((2, 3))


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a backbone, and the normalisation (of RGB in 0..1) that its checkpoints expect."""

    build: Callable[[], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_LITE = (127 / 255,) * 3, (128 / 255,) * 3
BACKBONES: Mapping[str, BackboneSpec] = {
    "resnet50": BackboneSpec(ResNet, defaults.IMAGENET_MEAN, defaults.IMAGENET_STD),
    "efficientnet_lite0": BackboneSpec(EfficientNetLite0, *_LITE),
    # Without the last stages, which tell what a thing is: for traces rather than for faces.
    "efficientnet_lite0_short": BackboneSpec(lambda: EfficientNetLite0(stages=5), *_LITE),
    # And with every pixel seen by the first convolution, at three times the cost.
    "efficientnet_lite0_fine": BackboneSpec(lambda: EfficientNetLite0(stem_stride=1, stages=5), *_LITE),
    # For tests and dry runs: the same code as ResNet-50 in a hundredth of the time.
    "resnet_tiny": BackboneSpec(
        lambda: ResNet((1, 1, 1, 1), stem=8), defaults.IMAGENET_MEAN, defaults.IMAGENET_STD
    ),
}


def load_pretrained(backbone: nn.Module, path: Path) -> int:
    """Loads a published checkpoint by name and returns how many tensors matched.

    Understands safetensors and torch files of plain tensors (never a pickled object), the wrappers
    {"state_dict" | "model": ...}, and any common prefix ("module.", "visual.", "encoder."), so that torchvision,
    timm, efficientnet_pytorch and EXIF-as-Language checkpoints load. Raises ValueError when convolutions or
    normalisations of the backbone are missing or have another shape.
    """
    return load_tensors(backbone, read_tensors(path), path.name)


def load_tensors(backbone: nn.Module, found: Mapping[str, Tensor], name: str) -> int:
    """Loads tensors by name as `load_pretrained` does; `name`: of the checkpoint, for errors."""
    wanted = backbone.state_dict()
    first = next(iter(wanted))
    prefixes = [key[: -len(first)] for key in found if key.endswith(first)]
    for prefix in sorted(prefixes, key=len):
        tensors = {key: found[prefix + key] for key in wanted if prefix + key in found}
        fits = {key: value for key, value in tensors.items() if value.shape == wanted[key].shape}
        missing = [key for key in wanted if key not in fits and not key.endswith("num_batches_tracked")]
        if not missing:
            backbone.load_state_dict(fits, strict=False)
            return len(fits)
    raise ValueError(
        f"{name} does not fit this backbone (no set of tensors around {first!r} is complete): "
        f"choose the --backbone that the checkpoint was made for; known: {', '.join(BACKBONES)}"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint by name: safetensors, or a torch file that holds nothing else.

    Raises ValueError, naming the remedy, for a missing, damaged or oversized file, and for what would run code on
    loading: pickled objects and TorchScript archives.
    """
    convert = "convert its state dict to safetensors"
    try:
        if path.stat().st_size > MAX_CHECKPOINT_BYTES:
            raise ValueError(f"{path.name} is larger than {MAX_CHECKPOINT_BYTES // 2**30} GiB: {convert}")
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise ValueError(f"{path.name} is a TorchScript archive, which is a program: {convert}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile pickle may raise anything, though nothing of it is run
        if type(error) is ValueError:  # as above
            raise
        reason = "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else str(error)
        raise ValueError(f"{path.name} cannot be read as plain tensors ({reason}): {convert}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no tensors by name: {convert}")
    return {key: value for key, value in content.items() if isinstance(key, str) and _is_whole(value)}


def _is_whole(value: object) -> bool:
    """Whether that is a dense tensor whose numbers are all there: a few bytes may claim to be any shape."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()
