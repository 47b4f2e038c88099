"""From observations to scores and a threshold: what each entry of the tables says of every picture.

An entry is a contestant as it comes, or its features under a density fitted here. What is fitted or calibrated here
comes from the reference half of a photographic set; only the other half is measured. Halves are chosen by a hash of
the source, or of the picture's name in sets of fewer than MIN_GROUPS sources, where no better is to be had.

Thresholds, at a nominal share `alpha` of photographs flagged:
    published       the 1 - alpha quantile of the very photographs that the density was fitted to, as the paper has
                    it (Zou et al. 2025, section IV), which promises nothing about others
    equalised       conformal, on photographs kept apart from the fit; delivery keeps the threshold of the
                    equalised pictures, so that false alarms show what a delivery does
    a bundle        its own calibration, in every condition
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensborn import defaults
from lensborn.bench.contestants import Contestant, without_textures
from lensborn.bench.metrics import MIN_GROUPS
from lensborn.bench.observing import Observed, has_row, own_scores
from lensborn.bench.protocols import EQUALISED, PUBLISHED, is_delivery
from lensborn.calibration import Conformal
from lensborn.contrast import LEAST, Contrast
from lensborn.datasets.corpus import split_of
from lensborn.datasets.pictures import Picture
from lensborn.density import Density, fit_mixture

ALL = "(all)"
TEST, FIT, CALIBRATE = "test", "fit", "calibrate"
PARTS = ((TEST, 0.5), (FIT, 0.25), (CALIBRATE, 0.25))
PER_DIMENSION = 4  # photographs for every principal axis kept
PER_COMPONENT = 10  # photographs for every Gaussian


@dataclass(frozen=True)
class Refit:
    """Settings of the densities fitted here; what a set is too small for is left out. A contrast has none."""

    contrasts: bool = True  # where an encoder gives textures, as in a bundle; else these are left out
    n_components: Sequence[int] = (1, 2, 4, 8)  # held-out likelihood chooses
    n_dims: int = 64
    shrinkage: float = 0.1
    seed: int = defaults.SEED


@dataclass(frozen=True)
class Entry:
    """A contestant as it comes, or `refitted`: its features under a density fitted to the named photographs."""

    contestant: Contestant
    refitted: bool

    @property
    def name(self) -> str:
        """What the tables call it."""
        refitted = self.refitted and self.contestant.judges
        return f"{self.contestant.name} (refitted)" if refitted else self.contestant.name


@dataclass(frozen=True)
class Judgement:
    """Scores (N,) of all pictures, NaN where there is none; those of at least `threshold` are flagged."""

    scores: NDArray[np.float64]
    threshold: float


def entries_of(contestants: Sequence[Contestant]) -> list[Entry]:
    """Every contestant that judges as it comes, then every one that is refitted."""
    as_they_come = [Entry(contestant, False) for contestant in contestants if contestant.judges]
    return as_they_come + [Entry(contestant, True) for contestant in contestants if contestant.refits]


def needs_reference(contestants: Sequence[Contestant]) -> bool:
    """Whether anything is fitted or calibrated here, so that half of the photographs cannot be measured."""
    return any(contestant.refits or contestant.threshold is None for contestant in contestants)


def parts_of(
    pictures: Sequence[Picture], reference: bool, firsts: Sequence[Picture] | None = None
) -> NDArray[np.str_]:
    """The part of each picture; with `reference` false, and for generated pictures, all are measured.

    `firsts`: their `originals`. A file that stands there twice falls into one part, as a source does.
    """
    sources: dict[str, set[str]] = {}
    for picture in pictures:
        sources.setdefault(picture.set, set()).add(picture.source)
    # a source may have pictures in a small set, too: those go with the others
    split = set().union(*(some for some in sources.values() if len(some) >= MIN_GROUPS)) - {""}

    def part(picture: Picture, original: Picture) -> str:
        if picture.label == "fake" or not reference:
            return TEST
        return split_of(f"bench/{original.source if original.source in split else original.name}", PARTS)

    return np.array(list(map(part, pictures, firsts or pictures)))


def originals(pictures: Sequence[Picture], sha256: Sequence[str]) -> list[Picture]:
    """For each picture the first one of the same bytes, of those that name a source if any does, as far as their
    hashes are known (else "")."""
    pairs = list(zip(pictures, sha256, strict=True))
    first: dict[str, Picture] = {}
    for picture, digest in sorted(pairs, key=lambda pair: not pair[0].source):
        first.setdefault(digest, picture)
    return [first[digest] if digest else picture for picture, digest in pairs]


def members(pictures: Sequence[Picture], name: str) -> NDArray[np.bool_]:
    """Which pictures belong to the set of that name; ALL stands for all photographs."""
    if name == ALL:
        return np.array([picture.label == "real" for picture in pictures], dtype=bool)
    return np.array([picture.set == name for picture in pictures], dtype=bool)


def judge(
    entry: Entry,
    observed: Observed,
    condition: str,
    real: str,
    parts: NDArray[np.str_],
    *,
    alpha: float,
    refit: Refit,
) -> Judgement | None:
    """What an entry says in a condition, against the photographs of the set `real`; None with too few of them."""
    mine = members(observed.pictures, real)
    base = EQUALISED if is_delivery(condition) else condition
    contestant = entry.contestant
    if entry.refitted:
        if is_delivery(condition):
            return None
        features = observed.conditions[condition].observed[contestant.name]
        textures = contestant.texture_dim
        if not refit.contrasts:
            features, textures = without_textures(features, contestant), 0
        return _refitted(features, textures, mine, parts, condition, alpha, refit)
    scores = own_scores(contestant, condition, observed.conditions[condition])
    if contestant.threshold is not None:
        return Judgement(scores, contestant.threshold)
    reference = own_scores(contestant, base, observed.conditions[base])[mine & (parts != TEST)]
    return Judgement(scores, _threshold(reference[np.isfinite(reference)], base, alpha))


def _refitted(
    features: NDArray[np.float32] | NDArray[np.float64],
    texture_dim: int,
    mine: NDArray[np.bool_],
    parts: NDArray[np.str_],
    condition: str,
    alpha: float,
    refit: Refit,
) -> Judgement | None:
    there = has_row(features)
    reference = there & mine & (parts != TEST)
    for_fit = reference if condition == PUBLISHED else reference & (parts == FIT)
    density = _fitted(features[for_fit], texture_dim, refit)
    if density is None:
        return None
    scores = np.full(len(features), math.nan)
    scores[there] = density.score(features[there])
    for_threshold = for_fit if condition == PUBLISHED else reference & (parts == CALIBRATE)
    return Judgement(scores, _threshold(scores[for_threshold], condition, alpha))


def _fitted(
    features: NDArray[np.float32] | NDArray[np.float64], texture_dim: int, refit: Refit
) -> Density | None:
    """What a bundle would have: a contrast where there are textures, else a mixture. None with too few rows."""
    if texture_dim:
        return Contrast.fit(features, texture_dim) if len(features) >= LEAST else None
    components = [k for k in refit.n_components if k * PER_COMPONENT <= len(features)]
    n_dims = min(refit.n_dims, len(features) // PER_DIMENSION, features.shape[1])
    if not components or not n_dims:
        return None
    return fit_mixture(
        features,
        n_components=components if len(components) > 1 else components[0],
        n_dims=n_dims,
        shrinkage=refit.shrinkage,
        seed=refit.seed,
    )


def _threshold(scores: NDArray[np.float64], condition: str, alpha: float) -> float:
    """See the module's head; infinity, which flags nothing, with too few scores."""
    if not len(scores):
        return math.inf
    paper = condition == PUBLISHED
    threshold = np.quantile(scores, 1 - alpha) if paper else Conformal.fit(scores).threshold(alpha)
    return float(np.nextafter(threshold, math.inf))  # more than alpha may have the very score of the quantile
