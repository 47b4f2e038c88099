"""What can be seen of a picture's delivery: how sharp it is, band by band, and how large.

Such traits explain about half of the variance of a detector's score on photographs (CONTRIBUTING.md): without them,
photographs of one site look stranger than generated faces of another. The spectrum is the azimuthal average of
Durall, Keuper and Keuper, "Watch your up-convolution" (CVPR 2020), there used to tell generated pictures; here it
says how a picture was handled, and `calibration.Conditional` takes that out of the score.
"""

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

BANDS = 22
N_TRAITS = BANDS + 1
FLOOR = 1.0  # added to the power of uint8 pixels: below the quantisation of any photograph
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


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
