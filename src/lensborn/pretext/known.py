"""The training of the known channel: photographs against generated faces, patch by patch.

The network sees a part of the face at one size, and has only the first stages of its backbone, so that it learns
traces rather than faces. A stem that does not shrink (Gragnaniello et al., "Are GAN generated images easy to
detect?", 2021) is an option, `efficientnet_lite0_fine`: at the same cost it sees half as much of a face.
Both classes go through the same rough delivery, so that neither size nor sharpness nor coding tells them apart.
It shares nothing with the encoder of the one-class channel, which never sees a generated picture.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset

from lensborn.bundle import KNOWN_XML
from lensborn.datasets.corpus import Crop, split_of
from lensborn.datasets.pictures import Picture
from lensborn.delivery import ROUGH, Delivery, delivered_face, resized
from lensborn.faces import FaceFinder, Pixels, crop_square
from lensborn.graph import cores
from lensborn.known import KnownLook
from lensborn.photo import UnreadableError, decode_photo
from lensborn.pretext.backbones import BACKBONES, load_pretrained
from lensborn.pretext.corpus import native_face
from lensborn.pretext.export import save_graph
from lensborn.pretext.loop import (
    BEST,
    EpochSampler,
    Loop,
    LoopSettings,
    Progress,
    area_under_curve,
    place,
    validate_loop,
)
from lensborn.pretext.model import Encoder, moments

FEATURE_DIM = 128
LOOK = KnownLook()
PLACES = 2  # of a delivered face that are seen
KEPT = 8000  # decoded faces that a process holds, about 0.2 MB each
PHOTOS = "photos"  # the name of the corpus among the real sets

Split = Literal["train", "validate", "judge"]
#: What training may see of a labelled set. Photographs of the sets that it saw must also be left to be judged.
REAL_SPLITS = (("train", 0.5), ("validate", 0.1), ("judge", 0.4))
FAKE_SPLITS = (("train", 0.85), ("validate", 0.15))


@dataclass(frozen=True)
class Example:
    """A face in a file. `set`: corpus, publisher or generator. `source`: what must not outweigh the others."""

    crop: Crop
    set: str
    generated: bool


@dataclass(frozen=True)
class KnownSettings(LoopSettings):
    """All that decides the outcome of a run. `batch`: faces of each class a step, each seen at `PLACES`."""

    epochs: int = 8
    batch: int = 16
    lr: float = 1e-3
    steps: int = 100  # an epoch
    backbone: str = "efficientnet_lite0_short"
    patch: int = LOOK.patch  # px
    per_source: int = 32  # a source of more crops than this weighs no more than one of as many
    leave_out: tuple[str, ...] = ()  # sets that training never sees
    start: str | None = (
        None  # weights of a run to begin from: then the last stage of its encoder alone learns
    )
    delivery: Delivery = field(default_factory=lambda: ROUGH)


class KnownModel(nn.Module):
    """Patches (N, 3, S, S) in 0..255 to logits (N,): generated is positive."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.encoder = Encoder(backbone, FEATURE_DIM)
        self.head = nn.Linear(FEATURE_DIM, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.encoder(patches).float())[:, 0]
        return logits


class Moments(nn.Module):
    """Patches (N, 3, S, S) in 0..255 to what the channel goes by: the mean and the deviation over the patch of each
    channel of the last maps of K trained encoders, (N, 2 C K).

    The deviations say how uneven a face is, which the means alone forget: faces of generators that were not shown
    lie farther from photographs with them (docs/known.md). The encoders share all but their last stages: see
    `shared_trunk`.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, patches: Tensor) -> Tensor:
        """See the class."""
        maps = self.encoders[0].trunk(patches)  # type: ignore[operator]
        return torch.cat([moments(encoder.last(maps)) for encoder in self.encoders], dim=1)  # type: ignore[operator]


def photo_examples(crops: Iterable[Crop]) -> dict[Split, list[Example]]:
    """The faces of a corpus by split of their source: `train` and `validate`; other splits are not touched."""
    splits: dict[Split, list[Example]] = {"train": [], "validate": []}
    for crop in crops:
        if (members := splits.get(split_of(crop.source))) is not None:  # type: ignore[call-overload]
            members.append(Example(crop, PHOTOS, generated=False))
    return splits


def picture_split(picture: Picture) -> Split:
    """What training may do with a labelled picture, by a hash of its name."""
    splits = REAL_SPLITS if picture.label == "real" else FAKE_SPLITS
    return split_of(f"known/{picture.name}", splits)  # type: ignore[return-value]


def picture_examples(pictures: Sequence[Picture]) -> list[Example]:
    """The largest face of each picture, in order; pictures without one, or that cannot be read, are left out."""
    finder = FaceFinder()
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(lambda picture: _example(picture, finder), pictures)
        return [example for example in found if example is not None]


def _example(picture: Picture, finder: FaceFinder) -> Example | None:
    try:
        pixels = decode_photo(picture.read()).pixels
    except UnreadableError:
        return None
    faces = finder.find(pixels)
    if not faces:
        return None
    side = crop_square(faces[0].box, pixels.shape[1], pixels.shape[0])[2]
    nothing = np.full(4, np.nan)
    crop = Crop(picture.path, picture.name, picture.source, nothing, None, int(side), {}, faces[0].box)
    return Example(crop, picture.set, picture.label == "fake")


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Patches of faces. An item is {"patches": (K, 3, P, P) uint8, "generated": () float32}.

    A face is delivered once, and seen at K random places. With `delivery` None it is seen as it is, in the middle
    alone, and nothing is random.
    """

    def __init__(self, examples: Sequence[Example], patch: int, seed: int, delivery: Delivery | None) -> None:
        self.examples, self.patch, self.seed, self.delivery = examples, patch, seed, delivery
        self._native: dict[int, Pixels] = {}

    def __len__(self) -> int:
        """Number of faces."""
        return len(self.examples)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Tensor]:
        """The example of `key`: (draw, index), or an index, which stands for draw 0."""
        draw, index = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, draw, index])
        example, image = self.examples[index], self._face(index)
        if self.delivery:
            face = delivered_face(image, LOOK.side, self.delivery, rng)
            places = rng.integers(0, LOOK.side - self.patch + 1, (PLACES, 2))
        else:
            face = resized(image, LOOK.side)
            places = np.full((1, 2), (LOOK.side - self.patch) // 2)
        patches = np.stack([face[y : y + self.patch, x : x + self.patch] for y, x in places])
        return {
            "patches": torch.from_numpy(patches.transpose(0, 3, 1, 2).copy()),
            "generated": torch.tensor(float(example.generated)),
        }

    def _face(self, index: int) -> Pixels:
        """Decoding takes a third of the time of an item, so that faces are kept, up to KEPT of them."""
        if index not in self._native:
            if len(self._native) >= KEPT:
                self._native.clear()
            self._native[index] = native_face(self.examples[index].crop)[0]
        return self._native[index]


class BalancedBatches(EpochSampler):
    """Batches of as many photographs as generated faces, each set of a class as often as the others."""

    def __init__(
        self,
        examples: Sequence[Example],
        steps: int,
        batch: int,
        seed: int,
        per_source: int,
        rank: int,
        world: int,
    ) -> None:
        self.steps, self.batch, self.seed, self.rank, self.world = steps, batch, seed, rank, world
        self.weights = [weights(examples, generated, per_source) for generated in (False, True)]

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Batches from `start` on, of (number of the step, index)."""
        for number in range(self.start, self.steps):
            step = self.epoch * self.steps + number
            rng = np.random.default_rng([self.seed, step])
            drawn = np.concatenate([rng.choice(len(w), self.batch, p=w) for w in self.weights])
            yield [(step * 2 * self.batch + place, int(index)) for place, index in enumerate(drawn)][
                self.rank :: self.world
            ]


def weights(examples: Sequence[Example], generated: bool, per_source: int) -> NDArray[np.float64]:
    """The probability (N,) with which each example of a class is drawn; 0 for the other class.

    Sets are equal; within a set, sources weigh as many crops as they have, at most `per_source`.
    """
    mine = [example for example in examples if example.generated == generated]
    sizes = Counter((example.set, example.crop.source) for example in mine)
    totals: dict[str, float] = defaultdict(float)
    for (name, _), size in sizes.items():
        totals[name] += min(size, per_source)
    probabilities = np.zeros(len(examples))
    for place_, example in enumerate(examples):
        if example.generated == generated:
            size = sizes[example.set, example.crop.source]
            probabilities[place_] = min(size, per_source) / size / totals[example.set] / len(totals)
    return np.asarray(probabilities / probabilities.sum())


class KnownTrainer(Loop):
    """One run of the known channel's network."""

    settings: KnownSettings
    model: KnownModel

    def __init__(
        self,
        settings: KnownSettings,
        train: Sequence[Example],
        validate: Sequence[Example],
        out: Path,
        *,
        workers: int = 1,
        checkpoint_every: int = 50,
        progress: Progress = lambda *_: None,
    ) -> None:
        validate_settings(settings, train, validate)
        torch.manual_seed(settings.seed)
        model = KnownModel(settings.backbone)
        if settings.init:
            load_pretrained(model.encoder.backbone, Path(settings.init))
        if settings.start:
            begin_from(model.encoder, Path(settings.start))
        batches = BalancedBatches(
            train, settings.steps, settings.batch, settings.seed, settings.per_source, *place()
        )
        shared: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
        dataset = PatchDataset(train, settings.patch, settings.seed, settings.delivery)
        loader = DataLoader(dataset, batch_sampler=batches, **shared)
        held_out = PatchDataset(validate, settings.patch, settings.seed, delivery=None)
        self.validation = DataLoader(held_out, batch_size=2 * settings.batch, **shared)
        self.summary = {"train": _summary(train), "validate": _summary(validate)}
        super().__init__(
            settings, model, batches, loader, out, checkpoint_every=checkpoint_every, progress=progress
        )

    def train_step(self, network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One update; where earlier stages stay as they were, their normalisations keep their statistics."""
        for module in self.model.encoder.backbone.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return super().train_step(network, batch)

    def losses(self, network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of photograph against generated."""
        logits, generated = self._look(network, batch)
        loss = binary_cross_entropy_with_logits(logits, generated.to(self.device))
        return loss, {"loss_known": loss}

    def _look(self, network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits and labels (B K,) of a batch of patches (B, K, 3, P, P)."""
        patches, generated = batch["patches"], batch["generated"]
        return network(self.crops(patches.flatten(0, 1))), generated.repeat_interleave(patches.shape[1])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """AUC on other faces of the sets that training sees: an easy number, for choosing the epoch alone."""
        self.model.eval()
        logits, generated = [], []
        for batch in self.validation:
            with self.autocast():
                found, labels = self._look(self.model, batch)
            logits.append(found.float().cpu())
            generated.append(labels)
        scores, positive = torch.cat(logits).numpy(), torch.cat(generated).numpy() > 0.5
        auc = area_under_curve(scores[~positive], scores[positive])
        return {"known_auc": auc, "validation": auc}


def begin_from(encoder: Encoder, weights: Path) -> None:
    """Take the encoder of another run of the same backbone, and freeze what comes before its last stage.

    Raises ValueError where the file holds no such encoder.
    """
    prefix = "encoder."
    try:
        found = {k.removeprefix(prefix): v for k, v in load_file(weights).items() if k.startswith(prefix)}
        encoder.load_state_dict(found)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{weights} holds no encoder of this backbone: give {BEST} of such a run") from error
    encoder.backbone.requires_grad_(False)
    for module in encoder.backbone.last_stage():  # type: ignore[operator]
        module.requires_grad_(True)


def validate_settings(settings: KnownSettings, train: Sequence[Example], validate: Sequence[Example]) -> None:
    """Raises ValueError, naming the remedy, for settings that can't be run on these examples."""
    validate_loop(settings)
    if settings.backbone not in BACKBONES:
        raise ValueError(f"unknown backbone {settings.backbone!r}: use one of {', '.join(BACKBONES)}")
    if settings.patch % 32 or not 32 <= settings.patch <= LOOK.side:
        raise ValueError(f"patch {settings.patch} must be a multiple of 32, at most {LOOK.side}")
    for name, examples in (("training", train), ("validation", validate)):
        if len({example.generated for example in examples}) < 2:
            raise ValueError(f"{name} needs photographs and generated faces: add pictures of both")


def _summary(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    sets: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        sets[example.set].append(example)
    return {
        name: {"faces": len(members), "sources": len({example.crop.source for example in members})}
        for name, members in sorted(sets.items())
    }


def export_known(runs: Sequence[Path]) -> Path:
    """Writes known.xml and known.bin, and returns the first's path: beside the best weights of one run, or, of
    several that began from the same weights, in a folder beside the first's.

    Raises ValueError for runs that differ before their last stages, RuntimeError when the exported features differ
    from torch's.
    """
    settings = json.loads((runs[0] / "settings.json").read_text())
    encoders = []
    for run in runs:
        model = KnownModel(json.loads((run / "settings.json").read_text())["backbone"])
        model.load_state_dict(load_file(run / BEST))
        encoders.append(model.encoder)
        if not shared_trunk(encoders[0].backbone, model.encoder.backbone):
            raise ValueError(
                f"{run} and {runs[0]} differ before their last stages: give runs with the same start"
            )
    out = runs[0].with_name("+".join(run.name for run in runs))
    out.mkdir(exist_ok=True)
    return save_graph(Moments(encoders).eval(), int(settings["patch"]), out / KNOWN_XML)


def shared_trunk(one: nn.Module, other: nn.Module) -> bool:
    """Whether two backbones are the same, to the bit, up to their last stages."""
    last = {id(module) for stage in one.last_stage() for module in stage.modules()}  # type: ignore[operator]
    inside = tuple(f"{name}." for name, module in one.named_modules() if id(module) in last)
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in mine.items() if not name.startswith(inside)
    )
