"""Split-conformal p-values: a false-alarm rate that holds whatever the score is.

Source: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World" (2005), chapter 2; for outliers:
Bates et al., "Testing for outliers with conformal p-values" (Annals of Statistics, 2023). With n calibration
scores that the density was not fitted to, and higher scores more anomalous,

    p(s) = (1 + #{calibration scores >= s}) / (n + 1).

For a photograph exchangeable with those calibrated on, P(p <= alpha) <= alpha, averaged over draws of the
calibration set. Given one set, the rate varies about it: where scores do not tie it is Beta(l, n + 1 - l)
with l = floor(alpha (n + 1)).
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class Conformal:
    """Calibration scores (n,), float64, finite, ascending. Raises ValueError otherwise; `fit` sorts."""

    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or self.scores.size == 0:
            raise ValueError(f"calibration scores must have shape (n,) with n >= 1, not {self.scores.shape}")
        if not np.isfinite(self.scores).all():
            raise ValueError(
                "calibration scores must be finite: leave out photographs that could not be scored"
            )
        if (np.diff(self.scores) < 0).any():
            raise ValueError("calibration scores must be ascending: use Conformal.fit, which sorts them")

    @classmethod
    def fit(cls, scores: ArrayLike, alpha: float | None = None) -> Self:
        """Calibrate on scores (n,), in any order. With alpha: ValueError where n is too small to flag any."""
        values = np.asarray(scores, dtype=np.float64)
        conformal = cls(np.sort(values) if values.ndim else values)
        if alpha is not None and conformal.threshold(alpha) == math.inf:
            raise ValueError(
                f"{conformal.scores.size} calibration photographs can flag nothing at alpha = {alpha}: "
                f"give {minimum_scores(alpha)} or more, or a larger alpha"
            )
        return conformal

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """p of scores (N,), in 1 / (n + 1) .. 1; a tie counts as "at least". ValueError for NaN."""
        values = np.asarray(scores, dtype=np.float64)
        if np.isnan(values).any():
            raise ValueError("a score is NaN and has no p-value: check the features that were scored")
        at_least = self.scores.size - np.searchsorted(self.scores, values, side="left")
        return np.asarray((1 + at_least) / (self.scores.size + 1))

    def threshold(self, alpha: float) -> float:
        """The t for which p(s) <= alpha exactly when s > t: a calibration score, or infinity.

        Infinity where n is too small, 1 / (n + 1) > alpha: then nothing can ever be flagged. ValueError
        unless 0 < alpha < 1.
        """
        _check_alpha(alpha)
        n = self.scores.size
        # the very quotients that p_values gives, as alpha * (n + 1) can round across a whole number
        allowed = int(np.searchsorted(np.arange(1, n + 2) / (n + 1), alpha, side="right"))
        return float(self.scores[n - allowed]) if allowed else math.inf


@dataclass(frozen=True, eq=False)
class FaceConformal:
    """As `Conformal`, for faces of which each has several scores, as it was delivered several times.

    A face counts as the share of its scores that are at least s, so that p(s) = (1 + their sum) / (m + 1) for m
    faces: the mean over which delivery of each face is drawn. `scores` (R,) ascending, and `tails` (R + 1,): the
    sum of shares from each score on. `fit` makes them.
    """

    scores: NDArray[np.float64]
    tails: NDArray[np.float64]
    faces: int

    @classmethod
    def fit(cls, scores: ArrayLike, faces: ArrayLike) -> Self:
        """Calibrate on scores (R,) of the faces (R,). ValueError for none, or one that is not finite."""
        values, numbers = np.asarray(scores, dtype=np.float64), np.asarray(faces)
        if not values.size or not np.isfinite(values).all():
            raise ValueError("calibration scores must be finite numbers, one or more: add photographs")
        _, face, rows = np.unique(numbers, return_inverse=True, return_counts=True)
        order = np.argsort(values, kind="stable")
        shares = 1 / rows[face[order]]
        tails = np.append(np.cumsum(shares[::-1])[::-1], 0.0)
        return cls(values[order], tails, len(rows))

    @property
    def smallest_p(self) -> float:
        """Above every calibration score."""
        return 1 / (self.faces + 1)

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """p of scores (N,), in 1 / (m + 1) .. 1; a tie counts as "at least"."""
        at = np.searchsorted(self.scores, np.asarray(scores, dtype=np.float64), side="left")
        return self._levels[at]

    def threshold(self, alpha: float) -> float:
        """The t for which p(s) <= alpha exactly when s > t; infinity where nothing can ever be flagged."""
        _check_alpha(alpha)
        above = int(np.argmax(self._levels <= alpha)) if self._levels[-1] <= alpha else len(self._levels)
        if above == len(self._levels):
            return math.inf
        return float(self.scores[above - 1]) if above else -math.inf

    @property
    def _levels(self) -> NDArray[np.float64]:
        """p of a score that `searchsorted` puts at each place (R + 1,); descending."""
        return np.minimum((1 + self.tails) / (self.faces + 1), 1.0)


def minimum_scores(alpha: float) -> int:
    """The fewest scores with which anything can be flagged: the least n with 1 / (n + 1) <= alpha."""
    _check_alpha(alpha)
    n = max(math.ceil(1 / Fraction(alpha)) - 1, 1)
    return n - 1 if n > 1 and 1 / n <= alpha else n  # alpha may be 1 / n rounded down


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval for a binomial share, k of n seen: (low, high) in 0..1, right in a share level or more.

    Source: Clopper and Pearson, Biometrika 26 (1934). Raises ValueError unless 0 <= k <= n, n >= 1 and
    0 < level < 1.
    """
    from scipy.special import betaincinv  # noqa: PLC0415  (detection need not load SciPy)

    if not (0 <= k <= n and n >= 1 and 0 < level < 1):
        raise ValueError(
            f"needs 0 <= k <= n, n >= 1 and 0 < level < 1, not k = {k}, n = {n}, level = {level}"
        )
    tail = (1 - level) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return low, high


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, as 0.05 does, not {alpha}")
