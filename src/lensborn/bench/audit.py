"""The audit: what classifiers reach that see the format alone. Where they get far, a table may measure formats.

Two of them, trained by cross-validation on the very pictures of a row:

container   width, height, codec, JPEG tables, chroma subsampling, progressive or not, and length: no pixel
texture     high-pass statistics of the face crop at native resolution: energy, tails, correlations and spectrum of
            noise residuals (the filters of Fridrich and Kodovsky, "Rich models for steganalysis of digital images",
            IEEE TIFS 2012). Resampling, sharpening and recompression show here; so does, honestly, what a
            generator leaves. It tells that two sets differ in fine detail, not why.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lensborn.bench.metrics import (
    Interval,
    Strings,
    auc_of,
    curves,
    deviation_of,
    quantile_of,
)

MINIMUM = 10  # pictures of each class, for five folds to mean anything
FOLDS = 5
WINDOW = 256  # px; statistics are of the middle of a crop
BANDS = 8  # of the radial spectrum
REPLICATES = 500  # of the bootstrap
PENALTY = 10.0  # ridge, in units of one picture: standardised features, so that chance stays chance

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Container:
    """What a file gives away before a pixel is decoded.

    `width`, `height`: px. `length`: bytes. `codec`: as Pillow names it, or "other". `luma`, `chroma`: mean entry of
    the JPEG tables, 0 without. `first`: entry of lowest frequency. `subsampling`: 0 4:4:4, 1 4:2:2, 2 4:2:0, -1
    unknown or no JPEG.
    """

    width: int
    height: int
    length: int
    codec: str
    luma: float = 0.0
    chroma: float = 0.0
    first: float = 0.0
    subsampling: int = -1
    progressive: bool = False


def read_container(data: bytes, width: int, height: int) -> Container:
    """The container of a coded picture whose decoded size is known; no pixel is decoded."""
    from PIL import JpegImagePlugin  # noqa: PLC0415

    try:
        with Image.open(io.BytesIO(data)) as image:
            tables = list((getattr(image, "quantization", None) or {}).values())
            is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
            return Container(
                width,
                height,
                len(data),
                image.format or "other",
                luma=float(np.mean(tables[0])) if tables else 0.0,
                chroma=float(np.mean(tables[-1])) if tables else 0.0,
                first=float(tables[0][0]) if tables else 0.0,
                subsampling=JpegImagePlugin.get_sampling(image) if is_jpeg else -1,
                progressive=bool(image.info.get("progressive", False)),
            )
    except Exception:  # HEIC, or a header that only `read_photo` takes
        return Container(width, height, len(data), "other")


def container_features(containers: Sequence[Container]) -> Floats:
    """Containers as numbers (N, D): sizes by their logarithms, codec and subsampling by indicators.

    Squares and products are added, so that a size between two others can be told from both.
    """
    if not containers:
        return np.empty((0, 0))
    numbers = np.array(
        [
            (
                np.log(c.width),
                np.log(c.height),
                np.log(c.length / (c.width * c.height)),
                c.luma,
                c.chroma,
                c.first,
            )
            for c in containers
        ]
    )
    upper = np.triu_indices(numbers.shape[1])
    centred = numbers - numbers.mean(axis=0)
    products = centred[:, upper[0]] * centred[:, upper[1]]
    kinds = [(c.codec, c.subsampling, c.progressive) for c in containers]
    indicators = np.array(
        [[kind == known for known in sorted(set(kinds))] for kind in kinds], dtype=np.float64
    )
    return np.hstack([numbers, products, indicators])


# --- high-pass statistics -----------------------------------------------------------------------------

_KV = np.array(
    [[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]],
    dtype=np.float32,
) / 12  # fmt: skip
_FILTERS = [
    np.array(kernel, dtype=np.float32)
    for kernel in (
        [[-1, 1]],
        [[-1], [1]],
        [[0.5, -1, 0.5]],
        [[0.5], [-1], [0.5]],
        [[-0.25, 0.5, -0.25], [0.5, -1, 0.5], [-0.25, 0.5, -0.25]],
        _KV,
    )
]
_TINY = 1e-3  # squared grey levels: below what rounding leaves


def highpass_statistics(pixels: NDArray[np.uint8]) -> Floats:
    """Statistics (D,) of the residuals of a picture (H, W, 3) uint8, of its middle at most WINDOW px wide.

    All numbers are finite, for constant pictures and pictures of a few pixels too.
    """
    height, width = pixels.shape[:2]
    top, left = max(0, (height - WINDOW) // 2), max(0, (width - WINDOW) // 2)
    window = pixels[top : top + WINDOW, left : left + WINDOW].astype(np.float32)
    grey = np.asarray(cv2.cvtColor(np.ascontiguousarray(window), cv2.COLOR_RGB2GRAY), dtype=np.float32)
    contrast = float(grey.var()) + _TINY
    numbers: list[float] = []
    for kernel in _FILTERS:
        residual = cv2.filter2D(grey, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        squares = residual * residual
        energy = float(squares.mean()) + _TINY
        numbers += [
            np.log(energy),
            np.log(energy / contrast),
            np.log(float(np.mean(squares * squares)) / energy**2 + _TINY),
            float(np.mean(residual[:, 1:] * residual[:, :-1])) / energy if grey.shape[1] > 1 else 0.0,
            float(np.mean(residual[1:] * residual[:-1])) / energy if grey.shape[0] > 1 else 0.0,
        ]
    fine = np.stack([cv2.filter2D(np.ascontiguousarray(window[..., c]), -1, _FILTERS[4]) for c in range(3)])
    power = np.sqrt(np.mean(fine * fine, axis=(1, 2))) + np.sqrt(_TINY)
    numbers += [
        float(np.mean(fine[a] * fine[b]) / (power[a] * power[b])) for a, b in ((0, 1), (1, 2), (0, 2))
    ]
    return np.array([*numbers, *_spectrum(grey)], dtype=np.float64)


def _spectrum(grey: NDArray[np.float32]) -> list[float]:
    """Log power in BANDS rings up to the highest frequency, less that of all rings together."""
    height, width = grey.shape
    taper = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    power = np.abs(np.fft.rfft2((grey - grey.mean()) * taper)) ** 2 / grey.size
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    ring = np.minimum((radius / 0.5 * BANDS).astype(int), BANDS - 1).ravel()
    sums = np.bincount(ring, power.ravel(), minlength=BANDS)
    counts = np.maximum(np.bincount(ring, minlength=BANDS), 1)
    logs = np.log(sums / counts + _TINY)
    return [float(value) for value in logs - np.log(power.mean() + _TINY)]


# --- the classifier -----------------------------------------------------------------------------------


def audit(
    real: ArrayLike,
    fake: ArrayLike,
    real_units: Strings | None = None,
    fake_units: Strings | None = None,
    *,
    seed: int = 0,
) -> Interval | None:
    """AUC of a classifier of (N, D) real against (M, D) fake features, five-fold; None with too few pictures.

    Regularised linear discriminants: ridge regression on the label, both classes weighing alike. The value is the
    mean over folds, each judged by a model that has not seen it, nor anything of its unit: `real_units` (N,) and
    `fake_units` (M,), FOLDS different names or more, as of `metrics.units_of`; without them, each picture. The
    interval resamples by them, too, and is widened for the models being samples as well (Nadeau and Bengio,
    "Inference for the generalization error", Machine Learning 2003). 0.5 [0.5, 0.5] where the features do not
    differ at all.
    """
    both = [np.asarray(values, dtype=np.float64) for values in (real, fake)]
    if min(map(len, both)) < MINIMUM:
        return None
    rng = np.random.default_rng(seed)
    units = [
        np.array([f"{label}, picture {n}" for n in range(len(values))]) if named is None else named
        for label, values, named in zip(("real", "fake"), both, (real_units, fake_units), strict=True)
    ]
    weights = [np.concatenate([np.ones((1, len(named))), _drawn(rng, named)]) for named in units]
    chosen: dict[str, int] = {}
    folds = [_folds(named, rng, chosen) for named in units]
    areas = []
    for fold in range(FOLDS):
        held = [which == fold for which in folds]
        project = _discriminant(*(values[~out] for values, out in zip(both, held, strict=True)))
        scores = [project(values[out]) for values, out in zip(both, held, strict=True)]
        drawn = [weight[:, out] for weight, out in zip(weights, held, strict=True)]
        curve = curves(*scores, *drawn)
        some = (curve[0][:, -1] > 0) & (curve[1][:, -1] > 0)  # else a class was not drawn in this fold
        area = np.full(len(some), math.nan)
        area[some] = auc_of((curve[0][some], curve[1][some]))
        areas.append(area)
    value, *means = np.nanmean(areas, axis=0)
    fewest = min(len(set(named)) for named in units)
    error = deviation_of(np.array(means), fewest) * math.sqrt(1 + FOLDS / (FOLDS - 1))
    reach = quantile_of(fewest) * error
    return Interval(float(value), max(float(value) - reach, 0.0), min(float(value) + reach, 1.0))


def _drawn(rng: np.random.Generator, named: Strings) -> Floats:
    """How often each picture is drawn, (REPLICATES, N): whole units, with replacement."""
    names, units = np.unique(named, return_inverse=True)
    n = len(names)
    return rng.multinomial(n, np.full(n, 1 / n), size=REPLICATES)[:, units].astype(np.float64)


def _folds(named: Strings, rng: np.random.Generator, chosen: dict[str, int]) -> NDArray[np.intp]:
    """The fold of each picture: of all of a unit one, the largest units first, each to the smallest fold.

    `chosen`: of units that the other class has, too; those of this one are added.
    """
    names, sizes = np.unique(named, return_counts=True)
    order = rng.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    units = [(str(names[n]), int(sizes[n])) for n in order]
    filled = np.zeros(FOLDS)
    for name, size in sorted(units, key=lambda unit: unit[0] not in chosen):
        filled[chosen.setdefault(name, int(np.argmin(filled)))] += size
    return np.array([chosen[name] for name in named.tolist()], dtype=np.intp)


def _discriminant(real: Floats, fake: Floats) -> Callable[[Floats], Floats]:
    """The projection of features (N, D) to (N,) by ridge regression on the label, features standardised."""
    both = np.concatenate([real, fake])
    mean, spread = both.mean(axis=0), both.std(axis=0)
    scale = np.where(spread > 1e-9 * (1 + np.abs(mean)), spread, np.inf)  # constant features say nothing

    def standard(values: Floats) -> Floats:
        return np.asarray(np.clip((values - mean) / scale, -10, 10))

    weights = np.repeat([0.5 / len(real), 0.5 / len(fake)], [len(real), len(fake)])
    labels = np.repeat([-1.0, 1.0], [len(real), len(fake)])
    centred = standard(both)
    centred = centred - weights @ centred
    weighted = (centred * weights[:, None]).T
    direction = np.linalg.solve(
        weighted @ centred + PENALTY / len(both) * np.eye(len(mean)), weighted @ labels
    )
    # rounded: what a sum in another order leaves is no difference
    return lambda values: np.asarray(np.round(standard(values) @ direction, 12))
