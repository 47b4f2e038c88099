"""Frozen encoders of others, from checkpoint files that the user has: CLIP, FaRL, EXIF-as-Language, ImageNet.

CLIP: Radford et al., "Learning transferable visual models from natural language supervision" (ICML 2021); FaRL:
Zheng et al., "General facial representation learning" (CVPR 2022), the same vision transformer; EXIF-as-Language:
Zheng et al. (CVPR 2023), a ResNet-50 whose last layer gives 768 features. What a checkpoint must hold:
docs/extractors.md.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lensborn.pretext.backbones import BACKBONES, load_tensors, read_tensors

BATCH = 32
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64  # of every CLIP: the number of heads follows
RESNET_SIZE = 224


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x): OpenAI's stand-in for GELU, which their weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A residual block of attention and perceptron, each after normalisation: (N, L, W) to (N, L, W)."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "act": activation, "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp["c_proj"](self.mlp["act"](self.mlp["c_fc"](self.ln_2(x))))
        return out


class VisionTransformer(nn.Module):
    """CLIP's image encoder, under OpenAI's key names: (N, 3, S, S), normalised, to (N, D)."""

    def __init__(
        self, *, width: int, layers: int, patch: int, side: int, out: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((side // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(Block(width, activation) for _ in range(layers))}
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, out))
        self.size, self.width = side, out

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([start, patches], dim=1) + self.positional_embedding)
        for block in self.transformer["resblocks"].children():
            x = block(x)
        found: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return found


class TorchExtractor:
    """A frozen network behind the interface of `features.Encoder`.

    `size`: side of its input, px; `feature_dim`: D; `name`, `sha256`: of the checkpoint file. It gives no textures.
    """

    texture_dim = 0

    def __init__(
        self,
        network: nn.Module,
        *,
        size: int,
        feature_dim: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        path: Path,
    ) -> None:
        """Freeze a network that takes RGB in 0..1, normalised by `mean` and `std`."""
        self.network = network.eval().requires_grad_(False)
        self.size, self.feature_dim, self.name = size, feature_dim, path.stem
        self._mean, self._std = (255 * torch.tensor(one).view(1, 3, 1, 1) for one in (mean, std))
        with path.open("rb") as stream:
            self.sha256 = hashlib.file_digest(stream, "sha256").hexdigest()

    @torch.no_grad()
    def encode(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of `crops` (N, S, S, 3), uint8 RGB: (N, D) float32. Raises ValueError for another shape."""
        if crops.ndim != 4 or crops.shape[1:] != (self.size, self.size, 3) or crops.dtype != np.uint8:
            raise ValueError(f"crops must be (N, {self.size}, {self.size}, 3) uint8, not {crops.shape}")
        features = np.empty((len(crops), self.feature_dim), dtype=np.float32)
        for start in range(0, len(crops), BATCH):
            planes = torch.from_numpy(crops[start : start + BATCH].transpose(0, 3, 1, 2).copy()).float()
            features[start : start + BATCH] = self.network((planes - self._mean) / self._std).numpy()
        return features


def clip(path: Path, *, quick: bool = True) -> TorchExtractor:
    """A vision transformer of CLIP's kind; its sizes are read from the tensors' shapes.

    `quick`: with OpenAI's activation (their weights and FaRL's), else GELU (most of open_clip's). Raises ValueError
    for another checkpoint.
    """
    tensors = _openai_names(read_tensors(path))
    try:
        width, _, patch, _ = tensors["conv1.weight"].shape
        grid = round((len(tensors["positional_embedding"]) - 1) ** 0.5)
        layers = len({key.split(".")[2] for key in tensors if key.startswith("transformer.resblocks.")})
        tensors.setdefault("proj", torch.eye(width))
        network = VisionTransformer(
            width=width,
            layers=layers,
            patch=patch,
            side=patch * grid,
            out=tensors["proj"].shape[1],
            activation=QuickGelu() if quick else nn.GELU(),
        )
        network.load_state_dict({key: tensors[key].float() for key in network.state_dict()})
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path.name} is no vision transformer of CLIP's kind ({reason}): docs/extractors.md lists its tensors"
        ) from error
    size, out = network.size, network.width
    return TorchExtractor(network, size=size, feature_dim=out, mean=CLIP_MEAN, std=CLIP_STD, path=path)


def exif_as_language(path: Path) -> TorchExtractor:
    """The image encoder of EXIF-as-Language: torchvision's ResNet-50 with a last layer to 768 features."""
    tensors = read_tensors(path)
    backbone = BACKBONES["resnet50"].build()
    load_tensors(backbone, tensors, path.name)
    weight = next((value for key, value in tensors.items() if key.endswith("fc.weight")), None)
    bias = next((value for key, value in tensors.items() if key.endswith("fc.bias")), None)
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[1] != backbone.width:
        raise ValueError(f"{path.name} has no last layer fc: give the whole checkpoint of EXIF-as-Language")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    network = nn.Sequential(backbone, layer)
    return TorchExtractor(
        network, size=RESNET_SIZE, feature_dim=len(weight), mean=CLIP_MEAN, std=CLIP_STD, path=path
    )


def imagenet(path: Path) -> TorchExtractor:
    """A ResNet-50 or EfficientNet-Lite0 trained on ImageNet: its pooled features."""
    tensors = read_tensors(path)
    errors = []
    for spec in BACKBONES.values():
        backbone = spec.build()
        try:
            load_tensors(backbone, tensors, path.name)
        except ValueError as error:
            errors.append(str(error))
            continue
        width = int(backbone.width)  # type: ignore[arg-type]
        return TorchExtractor(
            backbone, size=RESNET_SIZE, feature_dim=width, mean=spec.mean, std=spec.std, path=path
        )
    raise ValueError(f"{path.name} fits no backbone ({', '.join(BACKBONES)}): {errors[0]}")


_HF_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_HF = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",  # so spelt there
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}


def _openai_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vision tower's tensors under OpenAI's names, whatever prefix or naming they came with."""
    anchor = "embeddings.class_embedding"
    hugging_face = next((key[: -len(anchor)] for key in tensors if key.endswith(anchor)), None)
    if hugging_face is not None:
        return _from_hugging_face(tensors, hugging_face)
    prefix = next((key[: -len("class_embedding")] for key in tensors if key.endswith("class_embedding")), "")
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _from_hugging_face(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    inner = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    found = {ours: inner[theirs] for theirs, ours in _HF.items() if theirs in inner}
    if "visual_projection.weight" in tensors:
        found["proj"] = tensors["visual_projection.weight"].T
    for number in range(len({key.split(".")[2] for key in inner if key.startswith("encoder.layers.")})):
        theirs, ours = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for end in ("weight", "bias"):
            for their_part, our_part in _HF_BLOCK.items():
                found[f"{ours}{our_part}.{end}"] = inner[f"{theirs}{their_part}.{end}"]
            parts = [inner[f"{theirs}self_attn.{one}_proj.{end}"] for one in "qkv"]
            found[f"{ours}attn.in_proj_{end}"] = torch.cat(parts)
    return found
