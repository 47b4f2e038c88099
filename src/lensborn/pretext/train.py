"""The training of the pretext tasks: ranking by EXIF, and spotting manipulated faces. The loop: see `loop`."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lensborn import defaults
from lensborn.datasets.corpus import TAGS, Crop
from lensborn.delivery import Delivery
from lensborn.pretext.backbones import BACKBONES, load_pretrained
from lensborn.pretext.corpus import EpochBatches, PretextDataset
from lensborn.pretext.loop import (
    Loop,
    LoopSettings,
    Progress,
    area_under_curve,
    gather,
    place,
    validate_loop,
)
from lensborn.pretext.losses import manipulation_loss, ranking_loss
from lensborn.pretext.model import PretextModel, PretextOutput


@dataclass(frozen=True)
class Settings(LoopSettings):
    """All that decides the outcome of a run. `batch`: photographs; each is seen pristine and manipulated."""

    backbone: str = "resnet50"
    size: int = defaults.INPUT_SIZE
    per_source: int = 32
    ranking: bool = True
    manipulation: bool = True
    delivery: Delivery = field(default_factory=Delivery)


def validate_settings(settings: Settings) -> None:
    """Raises ValueError, naming the remedy, for settings that can't be run."""
    validate_loop(settings)
    if settings.backbone not in BACKBONES:
        raise ValueError(f"unknown backbone {settings.backbone!r}: use one of {', '.join(BACKBONES)}")
    if settings.size % 32 or settings.size < 64:
        raise ValueError(f"size {settings.size} must be a multiple of 32, at least 64")
    if not (settings.ranking or settings.manipulation):
        raise ValueError("nothing to learn: keep at least one of the two tasks")


class Trainer(Loop):
    """One run of the pretext tasks on one corpus."""

    settings: Settings
    model: PretextModel

    def __init__(
        self,
        settings: Settings,
        train: Sequence[Crop],
        validate: Sequence[Crop],
        out: Path,
        *,
        workers: int = 1,
        checkpoint_every: int = 50,
        progress: Progress = lambda *_: None,
    ) -> None:
        validate_settings(settings)
        torch.manual_seed(settings.seed)
        model = PretextModel(settings.backbone)
        if settings.init:
            load_pretrained(model.encoder.backbone, Path(settings.init))
        sources = [crop.source for crop in train]
        batches = EpochBatches(sources, settings.batch, settings.seed, settings.per_source, *place())
        if settings.batch % place()[1]:
            raise ValueError(
                f"a batch of {settings.batch} cannot be shared by {place()[1]} processes: choose a multiple"
            )
        if not len(batches):
            raise ValueError(
                f"{len(train)} crops for training, at most {settings.per_source} an epoch of a source, fill no "
                f"batch of {settings.batch}: add photographs of other sources"
            )
        if len({crop.photo for crop in validate}) < 2:
            raise ValueError("validation needs photographs of at least two kept-apart sources: add sources")
        if settings.ranking and not any(np.ptp([crop.tags for crop in validate], axis=0)):
            raise ValueError("the photographs kept apart do not differ in any tag: add others")
        shared: dict[str, Any] = {"num_workers": workers, "persistent_workers": False}
        dataset = PretextDataset(train, settings.size, settings.seed, settings.delivery)
        loader = DataLoader(dataset, batch_sampler=batches, **shared)
        held_out = PretextDataset(validate, settings.size, settings.seed, delivery=None)
        self.validation = DataLoader(held_out, batch_size=settings.batch, **shared)
        self.summary = {"train": summary_of(train), "validate": summary_of(validate)}
        self.data = digest_of_crops([*train, *validate])
        super().__init__(
            settings, model, batches, loader, out, checkpoint_every=checkpoint_every, progress=progress
        )

    def losses(self, network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The plain sum of the active tasks' losses, and each by name (eq. 5).

        With several processes, scores and tags are gathered so that pairs span all of them; each process
        keeps the gradient of its own scores, scaled by their number since the wrapper averages gradients.
        """
        pristine = batch["pristine"]
        crops = self.crops(torch.cat([pristine, batch["manipulated"]]))
        output: PretextOutput = network(crops)
        numbers: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        if self.settings.ranking:
            scores = gather(output.scores[: len(pristine)])
            ranking = ranking_loss(
                scores, gather(batch["tags"].to(self.device)), gather(batch["photo"].to(self.device))
            )
            loss = loss + self.world * ranking.per_tag.sum()
            numbers |= {f"loss_{tag}": value for tag, value in zip(TAGS, ranking.per_tag, strict=True)}
            numbers["saturated_pairs"] = ranking.saturated
        else:
            loss = loss + 0 * output.scores.sum()  # keeps every parameter in the graph of several processes
        labels = torch.arange(len(crops), device=self.device) >= len(pristine)
        manipulation = manipulation_loss(output.logits, labels)
        if self.settings.manipulation:
            loss = loss + manipulation
            numbers["loss_manipulation"] = manipulation
        else:
            loss = loss + 0 * manipulation
        return loss, numbers

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Rank accuracy of each tag that differs, manipulation AUC and their mean, on the sources kept apart."""
        self.model.eval()
        scores, clean, manipulated, tags, photos = [], [], [], [], []
        for batch in self.validation:
            halves = []
            for name in ("pristine", "manipulated"):
                with self.autocast():
                    halves.append(self.model(self.crops(batch[name])))
            scores.append(halves[0].scores.cpu())
            clean.append(halves[0].logits.cpu())
            manipulated.append(halves[1].logits.cpu())
            tags.append(batch["tags"])
            photos.append(batch["photo"])
        accuracies = rank_accuracy(
            torch.cat(scores).numpy(), torch.cat(tags).numpy(), torch.cat(photos).numpy()
        )
        auc = area_under_curve(torch.cat(clean).numpy(), torch.cat(manipulated).numpy())
        row = {
            f"rank_{tag}": value for tag, value in zip(TAGS, accuracies, strict=True) if math.isfinite(value)
        }
        parts = [float(np.mean(list(row.values())))] if self.settings.ranking else []
        parts += [auc] if self.settings.manipulation else []
        return row | {"manipulation_auc": auc, "validation": float(np.mean(parts))}


def rank_accuracy(
    scores: NDArray[np.float32], tags: NDArray[np.float64], photos: NDArray[np.int64]
) -> list[float]:
    """Share of rightly ordered pairs a tag, of faces from different photographs with different tags.

    `scores` and `tags` are (N, T), `photos` (N,). Chance is 0.5, a tied score counts half; NaN without pairs.
    """
    _, numbers, counts = np.unique(photos, return_inverse=True, return_counts=True)
    together = [np.flatnonzero(numbers == photo) for photo in np.flatnonzero(counts > 1)]
    accuracies = []
    for score, tag in zip(scores.T, tags.T, strict=True):
        right, pairs = _rightly_ordered(score, tag)
        for rows in together:  # faces of one photograph have the same tags, unless a table says otherwise
            if np.ptp(tag[rows]):
                less, fewer = _rightly_ordered(score[rows], tag[rows])
                right, pairs = right - less, pairs - fewer
        accuracies.append(right / pairs if pairs else math.nan)
    return accuracies


def _rightly_ordered(score: NDArray[np.float32], tag: NDArray[np.float64]) -> tuple[float, int]:
    """Pairs of different tags that the scores (N,) order rightly, a tie counting half, and all of them; in memory
    for N, value by value of the tag."""
    right, pairs = 0.0, 0
    lower = np.empty(0, score.dtype)
    for value in np.unique(tag):
        mine = np.sort(score[tag == value])
        right += float(sum(np.searchsorted(lower, mine, side).sum() for side in ("left", "right"))) / 2
        pairs += len(lower) * len(mine)
        lower = np.sort(np.concatenate([lower, mine]), kind="stable")
    return right, pairs


def digest_of_crops(crops: Iterable[Crop]) -> str:
    """What tells other crops, or crops in another order, from these: of their names, sources and tags."""
    digest = hashlib.sha256()
    for crop in crops:
        row = (crop.file.name, crop.photo, crop.source, crop.tags.tolist())
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def summary_of(crops: Sequence[Crop]) -> dict[str, int]:
    """What a model's card tells of the crops that it learnt from."""
    return {
        "crops": len(crops),
        "photographs": len({crop.photo for crop in crops}),
        "sources": len({crop.source for crop in crops}),
        "cameras": len({(crop.row.get("make"), crop.row.get("model")) for crop in crops}),
    }
