"""The encoder and its five heads (Zou et al. 2025, section 3): four tag scores and one manipulation logit."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lensborn import defaults
from lensborn.datasets.corpus import TAGS
from lensborn.pretext.backbones import BACKBONES


class Encoder(nn.Module):
    """Face crops (N, 3, S, S), RGB in 0..255, to features (N, 768): normalisation, backbone, projection."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: str = "resnet50", feature_dim: int = defaults.FEATURE_DIM) -> None:
        super().__init__()
        spec = BACKBONES[backbone]
        self.register_buffer("mean", 255 * torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = spec.build()
        self.projection = nn.Linear(int(self.backbone.width), feature_dim)  # type: ignore[arg-type]

    def trunk(self, crops: Tensor) -> Tensor:
        """What the backbone's last stage is given."""
        maps: Tensor = self.backbone.trunk((crops - self.mean) / self.std)  # type: ignore[operator]
        return maps

    def last(self, maps: Tensor) -> Tensor:
        """The backbone's last maps (N, C, h, w); `maps`: see trunk."""
        found: Tensor = self.backbone.last(maps)  # type: ignore[operator]
        return found

    def forward(self, crops: Tensor) -> Tensor:
        """See the class."""
        features: Tensor = self.projection(self.backbone((crops - self.mean) / self.std))
        return features


def watched(backbone: nn.Module, stages: Sequence[int] | None = None) -> list[Tensor]:
    """A list to which every pass of a backbone appends the maps of some stages, which count from 1; None is all.

    It is cleared by whoever reads it.
    """
    maps: list[Tensor] = []
    for number, stage in enumerate(backbone.stages(), start=1):  # type: ignore[operator]
        if stages is None or number in stages:
            stage[-1].register_forward_hook(lambda _module, _given, out: maps.append(out))
    return maps


def moments(maps: Tensor) -> Tensor:
    """The mean and the deviation of each channel of maps (N, C, h, w): (N, 2 C)."""
    away = maps - maps.mean((2, 3), keepdim=True)
    return torch.cat([maps.mean((2, 3)), (away * away).mean((2, 3)).sqrt()], dim=1)


@dataclass(frozen=True)
class PretextOutput:
    """`features` (N, D), `scores` (N, 4) in the order of `TAGS`, `logits` (N,): manipulated is positive."""

    features: Tensor
    scores: Tensor
    logits: Tensor


class PretextModel(nn.Module):
    """Encoder and linear heads; the heads run in float32 whatever the encoder runs in."""

    def __init__(self, backbone: str = "resnet50", feature_dim: int = defaults.FEATURE_DIM) -> None:
        super().__init__()
        self.encoder = Encoder(backbone, feature_dim)
        self.rank = nn.Linear(feature_dim, len(TAGS))
        self.manipulation = nn.Linear(feature_dim, 1)

    def forward(self, crops: Tensor) -> PretextOutput:
        """Crops (N, 3, S, S) in 0..255."""
        features = self.encoder(crops).float()
        with torch.autocast(crops.device.type, enabled=False):
            return PretextOutput(features, self.rank(features), self.manipulation(features)[:, 0])
