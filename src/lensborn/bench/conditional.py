"""A calibration conditional on delivery: what is left of a score when a picture's handling is taken out of it.

How sharp and how large a picture is can explain half of the variance of a detector's score on photographs
(CONTRIBUTING.md); photographs of one site then look stranger than generated faces of another. `tools/known.py
measure` compares it with the calibration that is shipped (docs/known.md).

Traits are the azimuthal average of the spectrum (Durall, Keuper and Keuper, "Watch your up-convolution", CVPR 2020,
who tell generated pictures by it; here it says how a picture was handled) and the size of the crop. A regression
takes location and scale of the score (Romano, Patterson and Candès, "Conformalized quantile regression", 2019,
section 5).
"""

from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

RIDGE = 0.01  # penalty of a regression on standardised traits, as a share of the number of photographs
LEAST_SCALE = 0.1  # a score's scale is never taken for less than this share of the mean one
REACH = 4.0  # deviations of a trait; beyond what was seen in fitting, a line promises nothing
BANDS = 22
N_TRAITS = BANDS + 1
FLOOR = 1.0  # added to the power of uint8 pixels: below the quantisation of any photograph
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Conditional:
    """How a score's location and scale follow from traits of a picture's delivery, learnt on photographs.

    `mean`, `deviation` (T,) standardise the traits; `location`, `scale` (T + 1,) are the coefficients of two ridge
    regressions, the constant last: of the score, and of its absolute residual (as in Romano, Patterson and Candès,
    "Conformalized quantile regression", 2019, section 5, local scaling).
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    location: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, scores: ArrayLike, traits: ArrayLike) -> Self:
        """Learn from scores (N,) and traits (N, T) of photographs that the score was not fitted to."""
        values, x = np.asarray(scores, dtype=np.float64), np.asarray(traits, dtype=np.float64)
        mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
        inputs = _with_one((x - mean) / deviation)
        location = _ridge(inputs, values)
        spread = np.abs(values - inputs @ location)
        return cls(mean, deviation, location, _ridge(inputs, spread))

    def residuals(self, scores: ArrayLike, traits: ArrayLike) -> NDArray[np.float64]:
        """What is left of scores (N,), given the traits (N, T)."""
        return np.asarray(np.asarray(scores, dtype=np.float64) - self._inputs(traits) @ self.location)

    def standardise(self, scores: ArrayLike, traits: ArrayLike) -> NDArray[np.float64]:
        """Scores (N,) as what is left of them, given the traits (N, T): about 0 and of one size on photographs."""
        scale = np.maximum(self._inputs(traits) @ self.scale, LEAST_SCALE * self.scale[-1])
        return np.asarray(self.residuals(scores, traits) / scale)

    def _inputs(self, traits: ArrayLike) -> NDArray[np.float64]:
        x = (np.asarray(traits, dtype=np.float64) - self.mean) / self.deviation
        return _with_one(np.clip(x, -REACH, REACH))


def delivery_traits(patches: NDArray[np.uint8], sides: ArrayLike) -> NDArray[np.float64]:
    """Traits (N, N_TRAITS) of patches (N, P, P, 3) uint8 RGB: log power of each band, and log2 of `sides`.

    `sides` (N,): of the face crop in the picture, px.
    """
    bands = [_bands(patch) for patch in patches]
    size = np.log2(np.asarray(sides, dtype=np.float64))[:, None]
    return np.hstack([np.array(bands).reshape(len(patches), BANDS), size])


def _bands(patch: NDArray[np.uint8]) -> NDArray[np.float64]:
    window, band, counts = _rings(len(patch))
    luma = patch @ LUMA
    power = np.abs(np.fft.rfft2((luma - luma.mean()) * window)) ** 2
    sums = np.bincount(band.ravel(), power.ravel(), minlength=BANDS)
    return np.asarray(np.log(sums / counts + FLOOR))


@cache
def _rings(side: int) -> tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.intp]]:
    """A window of unit energy, the band of each frequency, and how many frequencies a band has.

    Bands are of equal width up to the highest frequency along an axis; the corners beyond it join the last.
    """
    hann = np.hanning(side + 2)[1:-1]
    window = np.outer(hann, hann)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    band = np.minimum((frequency / 0.5 * BANDS).astype(np.intp), BANDS - 1)
    energy = np.sqrt((window**2).sum())
    return (window / energy).astype(np.float32), band, np.bincount(band.ravel(), minlength=BANDS)


def _with_one(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack([inputs, np.ones((len(inputs), 1))])


def _ridge(inputs: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of standardised inputs (N, T + 1) that end in a constant, which is not shrunk."""
    penalty = np.full(inputs.shape[1], RIDGE * len(inputs))
    penalty[-1] = 0.0
    return np.asarray(np.linalg.solve(inputs.T @ inputs + np.diag(penalty), inputs.T @ values))
