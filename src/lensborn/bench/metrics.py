"""Metrics of a detector with intervals, in NumPy alone.

Everywhere: generated is the positive class and a higher score is more anomalous. Every metric takes the
scores of the photographs (`real`) and of the generated pictures (`fake`), each one-dimensional, finite and
not empty; a ValueError says otherwise. All of them are read off one curve, the counts of both classes
flagged at every threshold, so that a bootstrap needs only that curve under resampled weights.

Sources: AUC as the Mann-Whitney statistic, ties one half (Hanley and McNeil 1982); average precision
without interpolation (as in scikit-learn); percentile bootstrap (Efron and Tibshirani 1993, chapter 13),
by cluster where pictures share a source (Field and Welsh 2007).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats]  # flagged fakes, flagged reals: (replicates, thresholds + 1), from none to all
Statistic = Callable[[Curve], Floats]  # (replicates,)

REPLICATES = 2000
MIN_GROUPS = 10  # with fewer clusters a cluster bootstrap is far too narrow: pictures are resampled instead
_CHUNK = 4_000_000  # elements of a resampled curve held at once: 32 MB


def _scores(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: expected a non-empty one-dimensional array, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: scores must be finite; leave out pictures without a score")
    return array


def _curves(real: Floats, fake: Floats, real_weights: Floats, fake_weights: Floats) -> Curve:
    """Weighted counts flagged at each distinct score, from the highest down. Weights: (replicates, n)."""
    scores = np.concatenate([fake, real])
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)  # the last picture of each run of ties
    is_fake = order < len(fake)

    def flagged(weights: Floats, mine: NDArray[np.bool_], index: NDArray[np.intp]) -> Floats:
        placed = np.zeros((len(weights), len(scores)))
        placed[:, mine] = weights[:, index[mine]]
        counts = np.cumsum(placed, axis=1)[:, ends]
        return np.concatenate([np.zeros((len(weights), 1)), counts], axis=1)

    return flagged(fake_weights, is_fake, order), flagged(real_weights, ~is_fake, order - len(fake))


def auc_of(curve: Curve) -> Floats:
    """Area under the ROC curve of each replicate."""
    hits, alarms = curve
    area = np.sum(np.diff(alarms) * (hits[:, 1:] + hits[:, :-1]) / 2, axis=1)
    return np.asarray(area / (hits[:, -1] * alarms[:, -1]))


def average_precision_of(curve: Curve) -> Floats:
    """Average precision of each replicate: precision summed over the steps of recall."""
    hits, alarms = curve
    flagged = np.maximum(hits + alarms, np.finfo(float).tiny)[:, 1:]  # nothing flagged: no step of recall
    return np.asarray(np.sum(np.diff(hits) * hits[:, 1:] / flagged, axis=1) / hits[:, -1])


def tpr_at_fpr_of(curve: Curve, fpr: float) -> Floats:
    """Highest share of fakes flagged at a threshold that flags at most `fpr` of the reals."""
    hits, alarms = curve
    allowed = alarms / alarms[:, -1:] <= fpr
    return np.asarray(np.max(np.where(allowed, hits, 0), axis=1) / hits[:, -1])


def point(statistic: Statistic, real: ArrayLike, fake: ArrayLike) -> float:
    """The value of a statistic of the curve on the pictures themselves."""
    real, fake = _scores(real, "real"), _scores(fake, "fake")
    return float(statistic(_curves(real, fake, np.ones((1, len(real))), np.ones((1, len(fake)))))[0])


def auc(real: ArrayLike, fake: ArrayLike) -> float:
    """Chance that a fake scores above a real picture, ties one half; 0..1."""
    return point(auc_of, real, fake)


def average_precision(real: ArrayLike, fake: ArrayLike) -> float:
    """Average precision, generated being positive; 0..1. Its chance level is the share of fakes."""
    return point(average_precision_of, real, fake)


def tpr_at_fpr(real: ArrayLike, fake: ArrayLike, fpr: float) -> float:
    """Share of fakes found when at most `fpr` (0..1) of the reals may be flagged; no interpolation."""
    return point(partial(tpr_at_fpr_of, fpr=fpr), real, fake)


def false_alarm_rate(real: ArrayLike, threshold: float) -> float:
    """Share of reals with a score of at least `threshold`."""
    return float(np.mean(_scores(real, "real") >= threshold))


def accuracy(real: ArrayLike, fake: ArrayLike, threshold: float) -> float:
    """Share of all pictures told rightly when scores of at least `threshold` are flagged.

    It leans to the larger class: with unequal sets read `balanced_accuracy`.
    """
    real, fake = _scores(real, "real"), _scores(fake, "fake")
    return float((np.sum(real < threshold) + np.sum(fake >= threshold)) / (len(real) + len(fake)))


def balanced_accuracy(real: ArrayLike, fake: ArrayLike, threshold: float) -> float:
    """Mean of the shares told rightly among reals and among fakes."""
    found = float(np.mean(_scores(fake, "fake") >= threshold))
    return (1 - false_alarm_rate(real, threshold) + found) / 2


def resample(
    rng: np.random.Generator,
    replicates: int,
    strata: NDArray[np.str_],
    groups: NDArray[np.str_] | None = None,
) -> Floats:
    """How often each picture is drawn, (replicates, n): with replacement, within each stratum.

    With `groups` whole groups are drawn, save in strata of fewer than MIN_GROUPS of them.
    """
    counts = np.empty((replicates, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        units = np.arange(len(members))
        if groups is not None:
            names, inverse = np.unique(groups[members], return_inverse=True)
            units = inverse if len(names) >= MIN_GROUPS else units
        n = int(units.max()) + 1
        drawn = rng.integers(n, size=(replicates, n)) + n * np.arange(replicates)[:, None]
        drawn_counts = np.bincount(drawn.ravel(), minlength=replicates * n).reshape(replicates, n)
        counts[:, members] = drawn_counts[:, units]
    return counts


def bootstrap(
    statistic: Statistic,
    real: ArrayLike,
    fake: ArrayLike,
    *,
    real_strata: NDArray[np.str_] | None = None,
    real_groups: NDArray[np.str_] | None = None,
    fake_groups: NDArray[np.str_] | None = None,
    replicates: int = REPLICATES,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic of the curve, each class (and real stratum) resampled by itself.

    The interval has no width where the classes separate fully: then no resample differs from the sample.
    """
    real, fake = _scores(real, "real"), _scores(fake, "fake")
    strata = np.full(len(real), "") if real_strata is None else real_strata
    rng = np.random.default_rng(seed)
    values: list[Floats] = []
    chunk = max(1, _CHUNK // (len(real) + len(fake)))
    for start in range(0, replicates, chunk):
        n = min(chunk, replicates - start)
        real_weights = resample(rng, n, strata, real_groups)
        fake_weights = resample(rng, n, np.full(len(fake), ""), fake_groups)
        values.append(statistic(_curves(real, fake, real_weights, fake_weights)))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
