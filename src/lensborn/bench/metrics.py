"""Metrics of a detector with intervals, in NumPy alone.

Everywhere: generated is the positive class and a higher score is more anomalous. Every metric takes the
scores of the photographs (`real`) and of the generated pictures (`fake`), each one-dimensional, finite and
not empty; a ValueError says otherwise. All of them are read off one curve, the counts of both classes
flagged at every threshold, so that a bootstrap needs only that curve under resampled weights.

Sources: AUC as the Mann-Whitney statistic, ties one half (Hanley and McNeil 1982); average precision
without interpolation (as in scikit-learn). Intervals by bootstrap (Efron and Tibshirani 1993, chapter 13), within
class and photographic set, by cluster where pictures share a source (Field and Welsh 2007): normal on the logit
scale with the bootstrap's standard error and Student's quantile, where plain percentiles cover the truth too rarely
(benchmarks/interval_coverage.py); percentiles for true-positive rates at a false-alarm rate, whose own threshold
makes them lopsided, and none where hardly a photograph stands above that threshold. Shares at a fixed threshold
need no bootstrap: see `rate`; sums of shares by the recovered variances of their parts (Zou and Donner 2008).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]
Curve = tuple[Floats, Floats]  # flagged fakes, flagged reals: (replicates, thresholds + 1), from none to all

AT_THRESHOLD = ("accuracy", "balanced_accuracy", "found", "false_alarms")
_OF_CURVE = ("auc", "ap", "tpr_at_1", "tpr_at_5")
MEASURES = (*_OF_CURVE, *AT_THRESHOLD)
_AT_FPR = {"tpr_at_1": 0.01, "tpr_at_5": 0.05}
_SHORTFALL = {
    "ap": 1.04
}  # deviation over the bootstrap's, whose ties hide part of it; simulated, sources or none
_LEAST_ABOVE = 10  # photographs (or sources) above a threshold, for its interval to mean anything

REPLICATES = 1000
Z = 1.959963984540054  # 95 % of a normal distribution lie within so many deviations
MIN_GROUPS = 10  # with fewer clusters a cluster bootstrap is far too narrow: pictures are resampled instead
_CHUNK = 250  # resamples held at once, fewer where they have many pictures:
_HELD = 5_000_000


def _scores(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: expected a non-empty one-dimensional array, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: scores must be finite; leave out pictures without a score")
    return array


def curves(real: Floats, fake: Floats, real_weights: Floats, fake_weights: Floats) -> Curve:
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


def resample(
    rng: np.random.Generator,
    replicates: int,
    strata: Strings,
    groups: Strings | None = None,
) -> Floats:
    """How often each picture is drawn, (replicates, n): with replacement, within each stratum.

    With `groups` whole groups are drawn, save in strata of fewer than MIN_GROUPS of them.
    """
    counts = np.empty((replicates, len(strata)))
    for members, units in _units(strata, groups):
        n = int(units.max()) + 1
        drawn = rng.integers(n, size=(replicates, n)) + n * np.arange(replicates)[:, None]
        drawn_counts = np.bincount(drawn.ravel(), minlength=replicates * n).reshape(replicates, n)
        counts[:, members] = drawn_counts[:, units]
    return counts


def _units(strata: Strings, groups: Strings | None) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """For each stratum, its members and the number of the unit that each is drawn with."""
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        units = np.arange(len(members))
        if groups is not None:
            names, inverse = np.unique(groups[members], return_inverse=True)
            units = inverse if len(names) >= MIN_GROUPS else units
        yield members, units


def units_of(strata: Strings, groups: Strings) -> Strings:
    """What each picture is drawn with, by name: its group, or in strata of fewer than MIN_GROUPS itself."""
    names = np.array([f"{stratum}, picture {n}" for n, stratum in enumerate(strata)], dtype=object)
    for members, units in _units(strata, groups):
        if units.max() + 1 < len(members):
            names[members] = groups[members]
    return names.astype(str)


def fewest_units(*classes: tuple[Strings, Strings | None]) -> int:
    """The number of units that the class with the fewest (its strata and groups) is drawn by; see `resample`."""
    return min(sum(int(units.max()) + 1 for _, units in _units(*one)) for one in classes)


def deviation_of(drawn: Floats, units: int) -> float:
    """The standard error by values of a bootstrap of so many units, whose variance is short by (n - 1) / n."""
    return float(drawn.std()) * math.sqrt(units / (units - 1))


def quantile_of(units: int) -> float:
    """Deviations to either side that hold 95 %: Student's, as the bootstrap's variance is an estimate itself."""
    from scipy.special import stdtrit  # noqa: PLC0415

    return float(stdtrit(units - 1, 0.975))


class Interval(NamedTuple):
    """A number with its 95 % interval, which holds it; `low` and `high` are NaN where no interval can be given."""

    value: float
    low: float
    high: float


def rate(flagged: ArrayLike, *, strata: Strings | None = None, groups: Strings | None = None) -> Interval:
    """The share of `flagged` (N,) bool: Wilson's interval (1927), or by `groups` within `strata` as in `resample`.

    By groups it is normal on the logit scale, with the linearised variance of a ratio and Student's quantile (Korn
    and Graubard 1998); where none or all are flagged, Wilson's of the groups. Raises ValueError for no picture.
    """
    from scipy.special import stdtrit  # noqa: PLC0415

    hits = np.asarray(flagged, dtype=bool)
    n = len(hits)
    if not n:
        raise ValueError("a share needs at least one picture")
    share = float(hits.mean())
    variance, n_units, freedom = _variance(hits.astype(np.float64), strata, groups)
    if n_units < n and variance:
        odds, logit = share * (1 - share), math.log(share / (1 - share))
        reach = float(stdtrit(freedom, 0.975)) * math.sqrt(variance) / odds
        return Interval(share, _expit(logit - reach), _expit(logit + reach))
    shrink = 1 + Z**2 / n_units
    centre = (share + Z**2 / (2 * n_units)) / shrink
    reach = Z / shrink * math.sqrt(share * (1 - share) / n_units + Z**2 / (4 * n_units**2))
    return Interval(share, min(max(centre - reach, 0.0), share), max(min(centre + reach, 1.0), share))


def _variance(values: Floats, strata: Strings | None, groups: Strings | None) -> tuple[float, int, int]:
    """The linearised variance of the mean of `values` (N,), the number of units, and degrees of freedom."""
    n = len(values)
    parts = list(_units(np.full(n, "") if strata is None else strata, groups))
    excess = [np.bincount(units, values[members] - values[members].mean()) for members, units in parts]
    variance = sum(float((one**2).sum()) * len(one) / max(len(one) - 1, 1) for one in excess) / n**2
    n_units = sum(map(len, excess))
    return variance, n_units, n_units - len(parts)


def weighted_sum(*terms: tuple[float, Interval]) -> Interval:
    """The sum of independent numbers, each with a weight of at least 0, with its interval (Zou and Donner 2008)."""
    value = sum(weight * one.value for weight, one in terms)
    down = math.sqrt(sum((weight * (one.value - one.low)) ** 2 for weight, one in terms))
    up = math.sqrt(sum((weight * (one.high - one.value)) ** 2 for weight, one in terms))
    return Interval(value, value - down, value + up)


class Comparison(NamedTuple):
    """Difference of two AUCs with its 95 % interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


class OverSets(NamedTuple):
    """Over several generated sets: the mean of each number, the same with all pooled, and the worst set's AUC."""

    macro: dict[str, Interval]
    micro: dict[str, Interval]
    worst: tuple[str, Interval]


def measures(
    real: ArrayLike,
    fake: ArrayLike,
    threshold: float,
    *,
    real_strata: Strings | None = None,
    real_groups: Strings | None = None,
    fake_groups: Strings | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Every number of MEASURES of one pair of sets, with its interval.

    Pictures with a score of at least `threshold` are flagged; it is not resampled. `found` and `false_alarms`: the
    share flagged of either class. `real_strata` (N,): the photographic set of each; `real_groups` (N,) and
    `fake_groups` (M,): what is resampled together, see `resample`.
    """
    real, fake = _scores(real, "real"), _scores(fake, "fake")
    sets, groups = {"": fake}, {"": fake_groups}
    drawn = _Draws(real, sets, real_strata, real_groups, groups, replicates, seed)
    return drawn.means() | _shares(real, sets, threshold, real_strata, real_groups, groups)


def over_sets(
    real: ArrayLike,
    fakes: Mapping[str, ArrayLike],
    threshold: float,
    *,
    real_strata: Strings | None = None,
    real_groups: Strings | None = None,
    fake_groups: Mapping[str, Strings | None] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> OverSets:
    """The numbers of `measures` over several generated sets against the same photographs.

    The photographs are resampled once for all sets, as they are shared.
    """
    real = _scores(real, "real")
    sets = {name: _scores(fake, name) for name, fake in fakes.items()}
    groups = dict(fake_groups or {})
    drawn = _Draws(real, sets, real_strata, real_groups, groups, replicates, seed)
    macro = drawn.means() | _shares(real, sets, threshold, real_strata, real_groups, groups)
    worst = min(drawn.values, key=lambda name: float(drawn.values[name]["auc"][0]))
    pooled = np.concatenate(list(sets.values()))
    pooled_groups = None
    if any(value is not None for value in groups.values()):
        parts = [(name, groups.get(name), len(sets[name])) for name in sets]
        pooled_groups = np.concatenate(
            [[f"{name}/{one}" for one in (range(n) if group is None else group)] for name, group, n in parts]
        )
    micro = measures(
        real,
        pooled,
        threshold,
        real_strata=real_strata,
        real_groups=real_groups,
        fake_groups=pooled_groups,
        replicates=replicates,
        seed=seed,
    )
    return OverSets(macro, micro, (worst, drawn.interval("auc", drawn.values[worst]["auc"])))


def paired(
    real_a: ArrayLike,
    fake_a: ArrayLike,
    real_b: ArrayLike,
    fake_b: ArrayLike,
    *,
    real_strata: Strings | None = None,
    real_groups: Strings | None = None,
    fake_groups: Strings | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """AUC of detector a less that of b, on the same pictures in the same order, resampled together.

    Interval and p-value with the bootstrap's standard error and Student's distribution, so that the one leaves out
    0 where the other is below .05. Raises ValueError for unequal numbers.
    """
    from scipy.special import stdtr  # noqa: PLC0415

    if np.shape(real_a) != np.shape(real_b) or np.shape(fake_a) != np.shape(fake_b):
        raise ValueError("paired scores must be of the same pictures: give both detectors' scores of each")

    def draws(real: ArrayLike, fake: ArrayLike) -> _Draws:
        sets, groups = {"": _scores(fake, "fake")}, {"": fake_groups}
        return _Draws(_scores(real, "real"), sets, real_strata, real_groups, groups, replicates, seed)

    one, other = draws(real_a, fake_a), draws(real_b, fake_b)
    difference = one.values[""]["auc"] - other.values[""]["auc"]
    value = float(difference[0])
    units = one.units
    if units < 2:  # a single picture says nothing
        return Comparison(value, -1.0, 1.0, 1.0)
    error = deviation_of(difference[1:], units)
    p_value = float(2 * stdtr(units - 1, -abs(value) / error)) if error else float(value == 0)
    reach = error * quantile_of(units)
    return Comparison(value, value - reach, value + reach, p_value)


def equally_right(
    right_a: ArrayLike, right_b: ArrayLike, *, strata: Strings | None = None, groups: Strings | None = None
) -> float:
    """Two-sided p-value that two detectors are right equally often, on the same pictures (N,) bool.

    Exact where every picture stands for itself (McNemar 1947); where pictures share a source, Student's test of the
    mean difference with the linearised variance, by `groups` within `strata` as in `rate`, or the exact test on the
    sources where that variance is 0.
    """
    from scipy.special import stdtr  # noqa: PLC0415
    from scipy.stats import binomtest  # noqa: PLC0415

    a, b = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    difference = a.astype(np.float64) - b
    variance, n_units, freedom = _variance(difference, strata, groups)
    if n_units < len(difference) and variance:
        return float(2 * stdtr(freedom, -abs(difference.mean()) / math.sqrt(variance)))
    strata = np.full(len(a), "") if strata is None else strata
    balance = [np.bincount(units, difference[members]) for members, units in _units(strata, groups)]
    only_a, only_b = (int(sum((sign * one > 0).sum() for one in balance)) for sign in (1, -1))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979), in the same order."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.array(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return [float(value) for value in adjusted]


class _Draws:
    """The numbers of the curve on the sample itself (first) and on each resample, for each generated set.

    `values`: by set and number, (1 + replicates,). `units`: see `fewest_units`.
    """

    def __init__(
        self,
        real: Floats,
        fakes: Mapping[str, Floats],
        real_strata: Strings | None = None,
        real_groups: Strings | None = None,
        fake_groups: Mapping[str, Strings | None] | None = None,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        strata = np.full(len(real), "") if real_strata is None else real_strata
        everyone = {name: np.full(len(fake), "") for name, fake in fakes.items()}
        groups = fake_groups or {}
        self._real_units = fewest_units((strata, real_groups))
        self.units = fewest_units(
            (strata, real_groups), *((everyone[name], groups.get(name)) for name in fakes)
        )
        self._least = 1 / (2 * max(map(len, fakes.values())) + 2)
        parts: dict[str, list[dict[str, Floats]]] = {name: [] for name in fakes}
        chunk = max(1, min(_CHUNK, _HELD // (len(real) + max(map(len, fakes.values())))))
        for start in range(0, replicates, chunk):
            n = min(chunk, replicates - start)
            real_weights = _with_sample(resample(rng, n, strata, real_groups), first=not start)
            for name, fake in fakes.items():
                drawn = resample(rng, n, everyone[name], groups.get(name))
                fake_weights = _with_sample(drawn, first=not start)
                parts[name].append(_of_curve(curves(real, fake, real_weights, fake_weights)))
        self.values = {
            name: {key: np.concatenate([block[key] for block in blocks]) for key in _OF_CURVE}
            for name, blocks in parts.items()
        }

    def means(self) -> dict[str, Interval]:
        """The mean of each number of the curve over the generated sets."""
        each = list(self.values.values())
        return {key: self.interval(key, np.mean([one[key] for one in each], axis=0)) for key in _OF_CURVE}

    def interval(self, key: str, values: Floats) -> Interval:
        """The interval of that number of the curve; see the module's head."""
        value, drawn = float(values[0]), values[1:]
        if key in _AT_FPR:
            if self._real_units * _AT_FPR[key] < _LEAST_ABOVE:
                return Interval(value, math.nan, math.nan)
            low, high = (float(limit) for limit in np.quantile(drawn, [0.025, 0.975]))
        elif self.units < 2:  # a single picture says nothing
            low, high = 0.0, 1.0
        else:
            centre, logits = _logit(values[:1], self._least)[0], _logit(drawn, self._least)
            error = _SHORTFALL.get(key, 1.0) * deviation_of(logits, self.units)
            reach = quantile_of(self.units) * error
            low, high = _expit(centre - reach), _expit(centre + reach)
        return Interval(value, min(low, value), max(high, value))


def _shares(
    real: Floats,
    fakes: Mapping[str, Floats],
    threshold: float,
    real_strata: Strings | None,
    real_groups: Strings | None,
    fake_groups: Mapping[str, Strings | None],
) -> dict[str, Interval]:
    """The numbers of AT_THRESHOLD, each the mean over the generated sets."""
    alarms = rate(real >= threshold, strata=real_strata, groups=real_groups)
    spared = Interval(1 - alarms.value, 1 - alarms.high, 1 - alarms.low)
    found = [rate(fake >= threshold, groups=fake_groups.get(name)) for name, fake in fakes.items()]
    part = 1 / len(found)
    weights = [part * len(fake) / (len(real) + len(fake)) for fake in fakes.values()]
    return {
        "accuracy": weighted_sum((1 - sum(weights), spared), *zip(weights, found, strict=True)),
        "balanced_accuracy": weighted_sum((0.5, spared), *((part / 2, one) for one in found)),
        "found": weighted_sum(*((part, one) for one in found)),
        "false_alarms": alarms,
    }


def _with_sample(weights: Floats, *, first: bool) -> Floats:
    return np.concatenate([np.ones((1, weights.shape[1])), weights]) if first else weights


def _of_curve(curve: Curve) -> dict[str, Floats]:
    return {
        "auc": auc_of(curve),
        "ap": average_precision_of(curve),
        **{name: tpr_at_fpr_of(curve, share) for name, share in _AT_FPR.items()},
    }


def _logit(values: Floats, least: float) -> Floats:
    """Log odds, of shares at least `least` from 0 and 1."""
    clipped = np.clip(values, least, 1 - least)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
