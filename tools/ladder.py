"""Trains the encoders of the ladder: one setting a rung, photographs alone, everything else alike.

    python tools/ladder.py --corpus FOLDER --init CHECKPOINT --out FOLDER tools/ladder.toml [--only NAME ...]

A rung is a table [rungs.NAME] of the settings file; what it does not say is the base's. Each of its seeds is a run
OUT/NAME-SEED, resumable (bilevel weights begin anew), that is not trained again once it has ended.
`tools/experiment.py --ladder OUT` measures them (settings files 08 and later). A face is brought to a size,
manipulated or its trace destroyed (`traces.py`), delivered and looked at with 192 px, as in the training of the
known channel; of that a rung sees a patch, or all of it, shrunk.
"""

import argparse
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import traces
from decoders import read_rebuilt
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own idiom
from torch.utils.data import DataLoader, Dataset

from lensborn.datasets.corpus import TAGS, Crop, read_corpus
from lensborn.delivery import ROUGH, Delivery, delivered_face, resized
from lensborn.graph import core, load_openvino
from lensborn.photo import digest_of, read_photo
from lensborn.pretext.backbones import load_pretrained
from lensborn.pretext.corpus import EpochBatches, native_face, photo_numbers, split_crops
from lensborn.pretext.export import write_export
from lensborn.pretext.loop import (
    BEST,
    Loop,
    LoopSettings,
    area_under_curve,
    repeatable_device,
    save_tensors,
)
from lensborn.pretext.losses import manipulation_loss, ranking_loss
from lensborn.pretext.manipulations import PRISTINE, draw_manipulation, manipulate
from lensborn.pretext.model import Encoder, moments, watched
from lensborn.pretext.train import digest_of_crops, rank_accuracy, summary_of

SIDE = 192  # px at which a delivered face is looked at
FEATURES = 128
TEXTURES = (3, 4)  # stages whose moments go beside the features of an encoder that is shipped
FIRST = (160, 257)  # px: side of a face when it is manipulated
DELIVERIES = {"none": None, "mild": Delivery(), "rough": ROUGH}
CATEGORIES = ("make", "flash", "edited")  # of BLADES' tags, those that the corpus has
MAKES = ("canon", "apple", "nikon", "samsung", "google", "sony", "fujifilm", "panasonic")
EDITORS = ("photoshop", "lightroom", "gimp", "picasa", "photo editor", "capture one", "snapseed", "acdsee")
SIZES = {"make": len(MAKES) + 1, "flash": 2, "edited": 2}
EVERY = 10  # steps between two updates of bilevel weights
DECODER_STEPS = 400
REBUILD = "rebuild"  # a way: as the autoencoders of decoders.py rebuilt the face

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Rung(LoopSettings):
    """All that decides the outcome of a run."""

    epochs: int = 2
    batch: int = 32
    lr: float = 1e-3
    per_source: int = 32
    backbone: str = "efficientnet_lite0_short"
    pretrained: bool = True  # from `--init`
    start: str = ""  # another rung, whose encoder of the same seed is started from
    view: str = (
        "patch"  # patch: as many pixels as they are; face: all of the face, shrunk; aliased: carelessly
    )
    patch: int = 128  # px of the network's input
    sees: str = "rgb"  # or residual (fixed high-pass kernels), learnt (constrained kernels), both
    shuffle: int = 0  # px: blocks of a patch change places; 0: they do not
    delivery: str = "rough"
    tasks: tuple[str, ...] = ("ranking", "manipulation")  # and categories, trace
    ways: tuple[str, ...] = ("resample", "denoise", "dictionary")  # of destroying a trace; see `REBUILD`
    weighting: str = "equal"  # or uncertainty (learnt deviations), bilevel (what helps the manipulation task)


# --- what is seen ---------------------------------------------------------------------------------------


def look(face: Image, rung: Rung, place: tuple[int, int], rng: np.random.Generator) -> Image:
    """The network's input (P, P, 3) of a delivered face (SIDE, SIDE, 3); `place`: top and left of a patch."""
    if rung.view == "patch":
        top, left = place
        seen = face[top : top + rung.patch, left : left + rung.patch]
    elif rung.view == "face":
        seen = resized(face, rung.patch)
    else:
        seen = np.asarray(
            cv2.resize(face, (rung.patch, rung.patch), interpolation=cv2.INTER_LINEAR), np.uint8
        )
    return shuffled(seen, rung.shuffle, rng) if rung.shuffle else seen


def shuffled(patch: Image, side: int, rng: np.random.Generator) -> Image:
    """The same blocks of `side` pixels, at other places: what a face is goes, its texture stays."""
    n = patch.shape[0] // side
    blocks = patch.reshape(n, side, n, side, 3).swapaxes(1, 2).reshape(n * n, side, side, 3)
    blocks = blocks[rng.permutation(n * n)].reshape(n, n, side, side, 3)
    return np.asarray(blocks.swapaxes(1, 2).reshape(patch.shape))


def grid(rung: Rung) -> list[tuple[int, int]]:
    """Where patches are taken of a face that is judged: as many as cover it about twice, or one of all."""
    if rung.view != "patch" or rung.patch == SIDE:
        return [(0, 0)]
    room, count = SIDE - rung.patch, 256 // rung.patch
    starts = [room * i // (count - 1) for i in range(count)]
    return [(top, left) for top in starts for left in starts]


@dataclass(frozen=True)
class Means:
    """What destroys a trace. `destroy`: a picture, in one of some ways; `rebuilt`: see decoders.read_rebuilt."""

    destroy: Callable[[Image, Sequence[str], np.random.Generator], Image]
    rebuilt: Mapping[str, Sequence[Path]]


class Rungs(Dataset[dict[str, Tensor]]):
    """A face pristine, manipulated and without its trace, as the tasks need; delivered each by itself."""

    def __init__(self, crops: Sequence[Crop], rung: Rung, means: Means) -> None:
        self.crops, self.rung, self.means = crops, rung, means
        self.photos = photo_numbers(crops)

    def __len__(self) -> int:
        """Number of crops."""
        return len(self.crops)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        """The example of `key`: (epoch, index), or an index, which stands for epoch 0."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.rung.seed, epoch, index])
        crop = self.crops[index]
        face, landmarks = native_face(crop)
        rebuilt = self._rebuilt(crop, rng)
        side = min(int(rng.integers(*FIRST)), *face.shape[:2]) if rebuilt is None else len(rebuilt)
        if landmarks is not None:
            landmarks = landmarks * (side / face.shape[1])
        face = resized(face, side)
        clean = manipulate(face, landmarks, PRISTINE, rng)
        views = {"pristine": clean}
        if "manipulation" in self.rung.tasks:
            views["manipulated"] = manipulate(face, landmarks, draw_manipulation(landmarks, side, rng), rng)
        if "trace" in self.rung.tasks:
            ways = [way for way in self.rung.ways if way != REBUILD]
            views["traceless"] = (
                self.means.destroy(clean, ways, rng)
                if rebuilt is None
                else manipulate(rebuilt, landmarks, PRISTINE, rng)
            )
        item = {name: self._seen(view, rng) for name, view in views.items()}
        return item | {
            "tags": torch.from_numpy(crop.tags),
            "categories": torch.tensor(categories(crop.row)),
            "photo": torch.tensor(self.photos[index]),
        }

    def _rebuilt(self, crop: Crop, rng: np.random.Generator) -> Image | None:
        """The face as a decoder rebuilt it, as often as that is one of the ways."""
        ways = self.rung.ways
        if "trace" not in self.rung.tasks or REBUILD not in ways:
            return None
        if len(ways) > 1 and rng.random() > 1 / len(ways):
            return None
        found = self.means.rebuilt[crop.row["file"]]
        return read_photo(found[rng.integers(len(found))]).pixels

    def _seen(self, face: Image, rng: np.random.Generator) -> Tensor:
        delivery = DELIVERIES[self.rung.delivery]
        if delivery:
            face = delivered_face(face, SIDE, delivery, rng)
        else:
            face = resized(face[:, :: 1 - 2 * int(rng.integers(2))].copy(), SIDE)
        room = SIDE - self.rung.patch
        top, left = rng.integers(0, room + 1, 2) if self.rung.view == "patch" else (0, 0)
        return torch.from_numpy(look(face, self.rung, (top, left), rng).transpose(2, 0, 1).copy())


def categories(row: Mapping[str, str]) -> list[int]:
    """Classes of the `CATEGORIES`; -1 where the photograph does not say."""
    make = row["make"].casefold()
    named = [number for number, name in enumerate(MAKES) if make.startswith(name)]
    flash = int(float(row["flash"])) & 1 if row["flash"] else -1  # the lowest bit: whether it fired
    edited = any(name in row["software"].casefold() for name in EDITORS)
    return [named[0] if named else len(MAKES), flash, int(edited)]


# --- what looks -----------------------------------------------------------------------------------------

#: Three high-pass kernels of the spatial rich model (Fridrich and Kodovský, 2012).
SRM = torch.tensor(
    [
        [[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]],
        [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ],
    dtype=torch.float32,
) / torch.tensor([4.0, 12.0, 2.0]).view(3, 1, 1)
GREY = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
GAIN, CLIP = 16.0, 8.0  # residuals of a few grey levels fill the range of the input


class Front(nn.Module):
    """RGB (N, 3, P, P) in 0..255 to what the backbone sees, of the same range; (N, 6, P, P) for "both"."""

    srm: Tensor
    centre: Tensor

    def __init__(self, sees: str) -> None:
        super().__init__()
        self.sees = sees
        self.register_buffer("srm", SRM[:, None], persistent=False)
        if sees == "learnt":
            self.kernels = nn.Parameter(torch.rand(3, 3, 5, 5) / 75)
            self.register_buffer("centre", (torch.arange(25) == 12).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.sees == "rgb":
            return x
        if self.sees == "learnt":
            # Bayar and Stamm, 2018: the weights about the centre sum to one, the centre is -1
            around = self.kernels.flatten(2)
            around = around * (1 - self.centre)
            kernels = (around / around.sum(2, keepdim=True) - self.centre).view_as(self.kernels)
            residual = F.conv2d(x, kernels / 3, padding=2)
        else:
            residual = F.conv2d((x * GREY.to(x.device)).sum(1, keepdim=True), self.srm, padding=2)
        residual = 127 + GAIN * residual.clamp(-CLIP, CLIP)
        return torch.cat([x, residual], 1) if self.sees == "both" else residual


class RungModel(nn.Module):
    """Front, encoder, heads: `rank` (4), `manipulation` (1), `trace` (1) and the categories, all linear."""

    def __init__(self, rung: Rung) -> None:
        super().__init__()
        self.front = Front(rung.sees)
        self.encoder = Encoder(rung.backbone, FEATURES)
        if rung.sees == "both":
            widen(self.encoder)
        self.rank = nn.Linear(FEATURES, len(TAGS))
        self.manipulation = nn.Linear(FEATURES, 1)
        self.trace = nn.Linear(FEATURES, 1)
        self.classes = nn.ModuleDict({name: nn.Linear(FEATURES, SIZES[name]) for name in CATEGORIES})
        self.deviations = nn.Parameter(torch.zeros(len(TASKS)))

    def forward(self, x: Tensor) -> Tensor:
        """Patches (N, 3, P, P) in 0..255 to features (N, FEATURES)."""
        features: Tensor = self.encoder(self.front(x))
        return features


def widen(encoder: Encoder) -> None:
    """Six channels in the place of three; the second three begin with the weights of the first."""
    stem = encoder.backbone._conv_stem
    wider = nn.Conv2d(6, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)
    wider.weight.data = stem.weight.data.repeat(1, 2, 1, 1) / 2
    encoder.backbone._conv_stem = wider
    encoder.mean, encoder.std = encoder.mean.repeat(1, 2, 1, 1), encoder.std.repeat(1, 2, 1, 1)


# --- the training ---------------------------------------------------------------------------------------

TASKS = (*TAGS, "manipulation", "trace", *CATEGORIES)
PLACES = {name: place for place, name in enumerate(TASKS)}  # of their weights and deviations


class Climb(Loop):
    """One run."""

    settings: Rung
    model: RungModel

    def __init__(
        self,
        rung: Rung,
        crops: Mapping[str, Sequence[Crop]],
        init: Path,
        out: Path,
        means: Means,
        progress: Any,
        workers: int = 0,
    ) -> None:
        torch.manual_seed(rung.seed)
        model = RungModel(rung)
        if rung.pretrained:
            plain = Encoder(rung.backbone, FEATURES)
            load_pretrained(plain.backbone, init)
            if rung.sees == "both":
                widen(plain)
            model.encoder.backbone.load_state_dict(plain.backbone.state_dict())
        if rung.start:
            found = load_file(out.with_name(f"{rung.start}-{rung.seed}") / BEST)
            model.load_state_dict({**found, "deviations": torch.zeros(len(TASKS))})
        sources = [crop.source for crop in crops["train"]]
        batches = EpochBatches(sources, rung.batch, rung.seed, rung.per_source)
        self.weights = torch.ones(len(TASKS), device=repeatable_device())
        shared: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        held_out = Rungs(crops["validate"], rung, means)
        self.validation = DataLoader(held_out, batch_size=rung.batch, **shared)
        loader = DataLoader(Rungs(crops["train"], rung, means), batch_sampler=batches, **shared)
        self.summary = {split: summary_of(some) for split, some in crops.items()}
        self.data = digest_of_crops([*crops["train"], *crops["validate"]])
        self.views = 1 + len({"manipulation", "trace"} & set(rung.tasks))  # see Rungs
        super().__init__(rung, model, batches, loader, out, progress=progress)

    def losses(self, network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the tasks, and each by name."""
        found = self._tasks(network, batch, slice(None))
        weighting = self.settings.weighting
        if weighting == "bilevel" and self.step % EVERY == 0:
            self._reweigh(network, batch)
        loss = torch.zeros((), device=self.device)
        for name, value in found.items():
            if weighting == "uncertainty":  # Kendall, Gal and Cipolla, 2018
                deviation = self.model.deviations[PLACES[name]]
                loss = loss + torch.exp(-deviation) * value + deviation / 2
            else:
                loss = loss + self.weights[PLACES[name]] * value
        return loss, {f"loss_{name}": value for name, value in found.items()}

    def _tasks(self, network: nn.Module, batch: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
        tasks = self.settings.tasks
        views = [name for name in ("pristine", "manipulated", "traceless") if name in batch]
        seen = [batch[name][rows] for name in views]
        features = network(self.crops(torch.cat(seen))).float()
        parts = dict(zip(views, features.split([len(one) for one in seen]), strict=True))
        found: dict[str, Tensor] = {}
        tags, photos, kinds = (batch[name][rows].to(self.device) for name in ("tags", "photo", "categories"))
        with torch.autocast(self.device.type, enabled=False):
            if "ranking" in tasks:
                ranking = ranking_loss(self.model.rank(parts["pristine"]), tags, photos)
                found |= dict(zip(TAGS, ranking.per_tag, strict=True))
            for task, view in (("manipulation", "manipulated"), ("trace", "traceless")):
                if view in parts:
                    both = torch.cat([parts["pristine"], parts[view]])
                    labels = torch.arange(len(both), device=self.device) >= len(parts["pristine"])
                    found[task] = manipulation_loss(getattr(self.model, task)(both)[:, 0], labels)
            if "categories" in tasks:
                for number, name in enumerate(CATEGORIES):
                    classes = kinds[:, number]
                    if (classes >= 0).any():
                        logits = self.model.classes[name](parts["pristine"])
                        found[name] = F.cross_entropy(logits, classes, ignore_index=-1)
        return found

    def _reweigh(self, network: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Weights of tasks whose gradient points where that of the manipulation task on other faces does.

        To first order, a step along a task's gradient changes another loss by their product: what the outer level
        of BLADES (Zou et al., 2025) optimises, without unrolling.
        """
        half = len(batch["pristine"]) // 2
        parameters = [p for p in self.model.encoder.parameters() if p.requires_grad]

        def direction(loss: Tensor) -> Tensor:
            slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            flat = torch.cat([slope.flatten() for slope in slopes if slope is not None])
            return flat / flat.norm().clamp(min=1e-12)

        wanted = direction(self._tasks(network, batch, slice(half, None))["manipulation"])
        found = self._tasks(network, batch, slice(half))
        for name, loss in found.items():
            self.weights[PLACES[name]] *= torch.exp(0.5 * (direction(loss) @ wanted))
        mine = [PLACES[name] for name in found]
        self.weights[mine] /= self.weights[mine].mean()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Each task on sources kept apart, and their mean; categories count as shares that are right."""
        self.model.eval()
        rows: dict[str, list[NDArray[Any]]] = {}
        for batch in self.validation:
            for name in ("pristine", "manipulated", "traceless"):
                if name in batch:
                    with self.autocast():
                        features = self.model(self.crops(batch[name])).float()
                    rows.setdefault(name, []).append(features.cpu().numpy())
            for name in ("tags", "photo", "categories"):
                rows.setdefault(name, []).append(batch[name].numpy())
        whole = {name: np.concatenate(parts) for name, parts in rows.items()}
        found: dict[str, float] = {}
        if "ranking" in self.settings.tasks:
            scores = _linear(self.model.rank, whole["pristine"])
            right = rank_accuracy(scores, whole["tags"], whole["photo"])
            found |= {f"rank_{tag}": value for tag, value in zip(TAGS, right, strict=True)}
        for task, view in (("manipulation", "manipulated"), ("trace", "traceless")):
            if view in whole:
                sides = (_linear(getattr(self.model, task), whole[one])[:, 0] for one in ("pristine", view))
                found[f"{task}_auc"] = area_under_curve(*sides)
        if "categories" in self.settings.tasks:
            for number, name in enumerate(CATEGORIES):
                said = _linear(self.model.classes[name], whole["pristine"]).argmax(1)
                true = whole["categories"][:, number]
                if (true >= 0).any():
                    found[f"right_{name}"] = float((said == true)[true >= 0].mean())
        return found | {"validation": float(np.mean(list(found.values())))}


def _linear(layer: nn.Linear, features: NDArray[np.float32]) -> NDArray[np.float32]:
    where = layer.weight.device
    return np.asarray(layer(torch.from_numpy(features).to(where)).detach().cpu().numpy())


# --- small autoencoders ---------------------------------------------------------------------------------


class Decoding(nn.Module):
    """An autoencoder of one kind of decoder: "nearest", "transposed" or "pixel-shuffle"; (N, 3, S, S) in 0..1."""

    def __init__(self, kind: str, width: int = 24) -> None:
        super().__init__()
        act = nn.LeakyReLU(0.1, inplace=True)
        self.encode = nn.Sequential(
            *(nn.Conv2d(3, width, 3, 2, 1), act, nn.Conv2d(width, 2 * width, 3, 2, 1), act),
            *(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), act),
        )

        def up(cin: int, cout: int) -> list[nn.Module]:
            if kind == "nearest":
                return [nn.Upsample(scale_factor=2), nn.Conv2d(cin, cout, 3, 1, 1)]
            if kind == "transposed":
                return [nn.ConvTranspose2d(cin, cout, 4, 2, 1)]
            return [nn.Conv2d(cin, 4 * cout, 3, 1, 1), nn.PixelShuffle(2)]

        self.decode = nn.Sequential(
            *up(2 * width, width), act, *up(width, width), act, nn.Conv2d(width, 3, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.decode(self.encode(x - 0.5)) + 0.5
        return found


def decoders(crops: Sequence[Crop], folder: Path) -> list[traces.Decoder]:
    """One trained autoencoder a kind; trained on photographs once, kept in `folder`."""
    found: list[traces.Decoder] = []
    for kind in ("nearest", "transposed", "pixel-shuffle"):
        path = folder / f"decoder-{kind}.safetensors"
        torch.manual_seed(0)
        network = Decoding(kind)
        if path.exists():
            network.load_state_dict(load_file(path))
        else:
            train_decoder(network, crops)
            save_tensors(path, network.state_dict())
        found.append(_rebuilding(network.eval()))
    return found


def train_decoder(network: Decoding, crops: Sequence[Crop]) -> None:
    """A few minutes of mean absolute error on pieces of photographs."""
    rng = np.random.default_rng(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    faces = [resized(native_face(crops[i])[0], SIDE) for i in rng.permutation(len(crops))[:400]]
    for step in range(DECODER_STEPS):
        places = rng.integers(0, SIDE - 96, (16, 2))
        chosen = [faces[i] for i in rng.integers(0, len(faces), 16)]
        pieces = np.stack([f[y : y + 96, x : x + 96] for f, (y, x) in zip(chosen, places, strict=True)])
        batch = torch.from_numpy(pieces.transpose(0, 3, 1, 2).copy()).float() / 255
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - step / DECODER_STEPS)
        optimiser.zero_grad()
        F.l1_loss(network(batch), batch).backward()
        optimiser.step()


def _rebuilding(network: Decoding) -> traces.Decoder:
    @torch.no_grad()
    def rebuild(image: Image) -> Image:
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % 4), (0, -width % 4), (0, 0)), mode="edge")
        x = torch.from_numpy(padded.transpose(2, 0, 1)[None].copy()).float() / 255
        out = (255 * network(x)[0, :, :height, :width]).round().clamp(0, 255)
        return np.asarray(out.numpy().astype(np.uint8).transpose(1, 2, 0))

    return rebuild


# --- what a run becomes ---------------------------------------------------------------------------------


class Layers(nn.Module):
    """Patches (N, 3, P, P) to the features, then the mean and deviation of each channel over the patch, of the maps
    of some stages (see `watched`)."""

    def __init__(self, model: RungModel, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self.maps = watched(model.encoder.backbone, stages)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat(self.parts(x), 1)

    def parts(self, x: Tensor) -> list[Tensor]:
        """The features, and the moments of each stage."""
        self.maps.clear()
        return [self.model(x), *map(moments, self.maps)]


def rung_of(run: Path) -> Rung:
    """The settings of a finished run."""
    settings = json.loads((run / "settings.json").read_text())
    return Rung(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    )


def trained(run: Path) -> RungModel:
    """The model of a finished run, with its best weights."""
    model = RungModel(rung_of(run))
    model.load_state_dict(load_file(run / BEST))
    return model


@cache
def layer_widths(run: Path) -> tuple[int, ...]:
    """Numbers of each layer that `RungExtractor` gives: of the features, and of the moments of each stage."""
    layers = Layers(RungModel(rung_of(run))).eval()
    with torch.no_grad():
        layers(torch.zeros(1, 3, SIDE, SIDE))
    return (FEATURES, *(2 * maps.shape[1] for maps in layers.maps))


def columns(run: Path, layers: Sequence[int]) -> NDArray[np.intp]:
    """Where `RungExtractor` puts some layers: 0 is the features, n the moments of stage n."""
    widths = layer_widths(run)
    if unknown := [layer for layer in layers if not 0 <= layer < len(widths)]:
        raise ValueError(f"{run.name} has {len(widths) - 1} stages, no stage {unknown[0]}")
    places = [np.arange(sum(widths[:layer]), sum(widths[: layer + 1])) for layer in layers]
    return np.concatenate(places)


class SideBySide(nn.Module):
    """Several `Layers` of the same input: the features of all, then the textures of all."""

    def __init__(self, several: Sequence[Layers]) -> None:
        super().__init__()
        self.several = nn.ModuleList(several)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        found = [layers.parts(x) for layers in self.several]  # type: ignore[operator]
        return torch.cat([one[0] for one in found] + [part for one in found for part in one[1:]], 1)


def export(runs: Sequence[Path]) -> Path:
    """Write the encoder of finished runs, for `features.read_encoder`; returns the folder that holds it.

    Of one run that is its own; several, which look side by side, get one beside the first's. It looks at a whole
    face at once, SIDE pixels wide: the same maps as of patches, but at their borders, for half the work. Beside
    the features it gives the moments of the stages TEXTURES (docs/experiments.md, 17). Raises ValueError for a
    rung that does not see patches of RGB as they are.
    """
    for run, rung in zip(runs, map(rung_of, runs), strict=True):
        if (rung.view, rung.sees, rung.shuffle) != ("patch", "rgb", 0):
            raise ValueError(
                f"{run.name} cannot be exported, as it sees {rung.view} of {rung.sees}, shuffled by {rung.shuffle} "
                "px: take a rung that sees patches of RGB, not shuffled"
            )
    network = SideBySide([Layers(trained(run), TEXTURES).eval() for run in runs])
    out = runs[0].with_name("+".join(run.name for run in runs))
    if len(runs) > 1:
        out.mkdir(exist_ok=True)
        card, *others = (json.loads((run / "card.json").read_text()) for run in runs)
        (out / "card.json").write_text(json.dumps({**card, "beside": others}, indent=2) + "\n")
    textures = sum(layer_widths(run)[stage] for run in runs for stage in TEXTURES)
    features = FEATURES * len(runs)
    write_export(network.eval(), out, rung_of(runs[0]).backbone, SIDE, features + textures, textures)
    return out


class RungExtractor:
    """A finished run behind the interface of `features.Encoder`: its `Layers`, means over the patches of a face."""

    size = SIDE

    def __init__(
        self, run: Path, before: Callable[[Image, np.random.Generator], Image] | None = None
    ) -> None:
        """`before`: what is done to a face before it is looked at. The network is compiled when it first is."""
        self.run, self.rung, self.before = run, rung_of(run), before
        self.sha256, self.name = f"{digest_of(run / BEST)} layers", run.name

    @cached_property
    def _network(self) -> Any:
        ov = load_openvino()
        graph = ov.convert_model(
            Layers(trained(self.run)).eval(),
            example_input=torch.zeros(1, 3, self.rung.patch, self.rung.patch),
        )
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        return core().compile_model(graph, "CPU", options)

    def encode(self, crops: Image) -> NDArray[np.float32]:
        """All layers (N, D), see `columns`, of crops (N, SIDE, SIDE, 3) uint8 RGB."""
        rng = np.random.default_rng(0)
        rows = []
        for crop in crops:
            face = self.before(crop, rng) if self.before else crop
            seen = np.stack([look(face, self.rung, place, rng) for place in grid(self.rung)])
            rows.append(self._network(seen.transpose(0, 3, 1, 2).astype(np.float32))[0].mean(axis=0))
        return np.array(rows, np.float32)


def manipulated(face: Image, rng: np.random.Generator) -> Image:
    """A face whose landmarks are not known, manipulated as the task of that name does it then: as a whole."""
    return manipulate(face, None, draw_manipulation(None, len(face), rng), rng)


def traceless(face: Image, rng: np.random.Generator) -> Image:
    """A face whose trace is destroyed in the ways that need no preparation."""
    return traces.destroy(face, ("resample", "denoise"), rng)


#: Counterparts of photographs, made of them: what a likelihood ratio compares with.
COUNTERPARTS = {"manipulated": manipulated, "traceless": traceless}


def rungs(path: Path) -> dict[str, list[Rung]]:
    """The rungs of a settings file by name, a run for each of their seeds."""
    asked = tomllib.loads(path.read_text())
    found = {}
    for name, changes in asked["rungs"].items():
        values = {**asked.get("base", {}), **changes}
        seeds = values.pop("seeds", [0])
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        found[name] = [Rung(**values, seed=seed) for seed in seeds]
    return found


def main() -> None:
    """See the module's head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME[-SEED]")
    parser.add_argument("--rebuilt", type=Path, help="what decoders.py wrote, for the rungs that need it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare faces")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    splits = split_crops(read_corpus(arguments.corpus))
    crops = {"train": splits["train"], "validate": splits["validate"][::2]}

    @cache
    def dictionary() -> traces.Floats:
        return traces.principal_patches([native_face(crop)[0] for crop in crops["train"][::20]])

    @cache
    def rebuilders() -> list[traces.Decoder]:
        return decoders(crops["train"], arguments.out)

    def destroy(image: Image, ways: Sequence[str], rng: np.random.Generator) -> Image:
        prepared = {"dictionary": dictionary()} if "dictionary" in ways else {}
        return traces.destroy(image, ways, rng, **prepared, decoders=rebuilders() if "decode" in ways else ())

    means = Means(destroy, read_rebuilt(arguments.rebuilt) if arguments.rebuilt else {})
    files = {crop.row["file"] for some in crops.values() for crop in some}
    asked = rungs(arguments.settings)
    known = {*asked, *(f"{name}-{rung.seed}" for name, seeds in asked.items() for rung in seeds)}
    if unknown := set(arguments.only) - known:
        parser.error(f"no rung {min(unknown)} in {arguments.settings}")
    for name, seeds in asked.items():
        for rung in seeds:
            run = f"{name}-{rung.seed}"
            if arguments.only and not {name, run} & set(arguments.only):
                continue
            if (arguments.out / run / "card.json").exists():
                continue
            if "trace" in rung.tasks:  # now, not in every process that prepares faces
                if REBUILD in rung.ways and not means.rebuilt.keys() >= files:
                    parser.error(
                        f"{run} learns from rebuilt faces: give what decoders.py wrote with --rebuilt"
                    )
                if "dictionary" in rung.ways:
                    dictionary()
                if "decode" in rung.ways:
                    rebuilders()
            with Progress() as bar:
                task = bar.add_task(run)
                Climb(
                    rung,
                    crops,
                    arguments.init,
                    arguments.out / run,
                    means,
                    lambda done, total, _, bar=bar, task=task: bar.update(task, completed=done, total=total),
                    arguments.workers,
                ).fit()


if __name__ == "__main__":
    main()
