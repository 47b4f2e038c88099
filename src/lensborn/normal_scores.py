"""Numbers measured by how rare they are among photographs, on the scale of a normal distribution.

Scores of different kinds have different tails, and the one with the longest would win wherever the greater counts.
Their normal scores (van der Waerden, 1952: the normal quantile of a number's rank) do not: 2 is as rare in each.
"""

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

KNOTS = np.linspace(-3, 3, 25)
_SHARES = [NormalDist().cdf(knot) for knot in KNOTS.tolist()]
#: Least rise of levels for each 1 of a score, as a share of the largest number or of 1: photographs may tie.
_RISE = 1e-6

Floats = npt.NDArray[np.float64]


def normal_levels(values: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """The numbers (Q,) whose normal scores are KNOTS: quantiles of values (N,), N >= 1, under weights (N,).

    Of few values, the outermost quantiles are the same ones, and so are the scores beyond.
    """
    numbers, masses = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    order = np.argsort(numbers, kind="stable")
    shares = np.cumsum(masses[order]) - masses[order] / 2
    rise = _RISE * max(1.0, float(np.abs(numbers).max()))
    return np.asarray(np.interp(_SHARES, shares / masses.sum(), numbers[order]) + KNOTS * rise)


def normal_scores(values: npt.ArrayLike, levels: Floats) -> Floats:
    """Normal scores (N,) of values (N,): linear between levels (Q,), and beyond the last as they rise to it from
    the middle."""
    numbers = np.asarray(values, dtype=np.float64)
    low, middle, high = levels[0], levels[len(levels) // 2], levels[-1]
    above = np.maximum(numbers - high, 0) * (KNOTS[-1] / (high - middle))
    below = np.minimum(numbers - low, 0) * (KNOTS[0] / (low - middle))
    return np.asarray(np.interp(numbers, levels, KNOTS) + above + below)
