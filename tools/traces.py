"""Photographs whose camera trace is destroyed while the content stays: what a generator's decoder may leave behind.

Made from photographs alone. Each way works at the size of the picture that it is given, so that what it leaves is
there when the picture is looked at without much shrinking:

- `resample`: down by two and up again, by a usual kernel or by a random transposed convolution, whose phases weigh
  differently, as those of a generator do (Odena et al., "Deconvolution and checkerboard artifacts", 2016);
- `denoise`: bilateral, median or mean filters, which take the sensor's noise with them;
- `dictionary`: patches put together from the principal ones of photographs, as blocks or averaged over shifts;
- `decode`: what a small autoencoder, trained on photographs (`ladder.py`), makes of it.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3) RGB
Floats = NDArray[np.float32]
Decoder = Callable[[Image], Image]

WAYS = ("resample", "denoise", "dictionary", "decode")
KERNELS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
BLOCK = 8  # px: side of the patches of the dictionary
PHASES = 0.03  # by how much the sum of a phase of a transposed convolution may differ from one
KEPT = (12, 64)  # of its 192 axes


def destroy(
    image: Image,
    ways: Sequence[str],
    rng: np.random.Generator,
    *,
    dictionary: Floats | None = None,
    decoders: Sequence[Decoder] = (),
) -> Image:
    """The picture (H, W, 3) uint8 without its trace, in one of `ways`, drawn uniformly.

    `dictionary`: see `principal_patches`. Raises ValueError for a way that is not known or lacks what it needs.
    """
    way = str(rng.choice(list(ways)))
    if way == "resample":
        return resample(image, rng)
    if way == "denoise":
        return denoise(image, rng)
    if way == "dictionary" and dictionary is not None:
        return from_dictionary(image, dictionary, rng)
    if way == "decode" and decoders:
        return decoders[rng.integers(len(decoders))](image)
    raise ValueError(f"cannot destroy a trace by {way!r}: use {', '.join(WAYS)} and give what it needs")


def resample(image: Image, rng: np.random.Generator) -> Image:
    """Down by two with averaging, up again by a kernel that is drawn."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        kernel = KERNELS[rng.integers(len(KERNELS))]
        return np.asarray(cv2.resize(small, (width, height), interpolation=kernel), dtype=np.uint8)
    return transposed(small, rng)[:height, :width]


def transposed(small: Image, rng: np.random.Generator) -> Image:
    """A picture (h, w, 3) twice as large by a transposed convolution of stride 2 with a random kernel.

    The kernel is a tent, disturbed; the sums of its four phases differ by a few per cent, which leaves a faint
    chequerboard.
    """
    side = int(rng.integers(3, 6))
    tent = 1 - np.abs(np.arange(side) - (side - 1) / 2) / ((side + 1) / 2)
    kernel = np.outer(tent, tent) * (1 + rng.uniform(-0.3, 0.3, (side, side)))
    for down in range(2):
        for right in range(2):
            phase = kernel[down::2, right::2]
            phase *= (1 + rng.uniform(-PHASES, PHASES)) / phase.sum()
    spread = np.zeros((2 * small.shape[0], 2 * small.shape[1], 3), dtype=np.float32)
    spread[::2, ::2] = small
    grown = cv2.filter2D(spread, -1, kernel, borderType=cv2.BORDER_REFLECT)
    return np.asarray(np.clip(np.rint(grown), 0, 255), dtype=np.uint8)


def denoise(image: Image, rng: np.random.Generator) -> Image:
    """One of three filters that smooth what is no edge."""
    kind = rng.integers(3)
    if kind == 0:
        return np.asarray(cv2.bilateralFilter(image, 5, rng.uniform(15, 50), 3), dtype=np.uint8)
    if kind == 1:
        return np.asarray(cv2.medianBlur(image, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.0)), dtype=np.uint8)


def principal_patches(images: Sequence[Image], seed: int = 0) -> Floats:
    """Mean (first row) and principal axes of patches of photographs: (1 + 3 BLOCK², 3 BLOCK²)."""
    rng = np.random.default_rng(seed)
    rows = []
    for image in images:
        tops, lefts = (rng.integers(0, side - BLOCK + 1, 40) for side in image.shape[:2])
        rows += [image[y : y + BLOCK, x : x + BLOCK].ravel() for y, x in zip(tops, lefts, strict=True)]
    patches = np.stack(rows).astype(np.float32)
    mean = patches.mean(axis=0)
    axes = np.linalg.svd(patches - mean, full_matrices=False)[2]
    return np.concatenate([mean[None], axes]).astype(np.float32)


def from_dictionary(image: Image, dictionary: Floats, rng: np.random.Generator) -> Image:
    """The picture as its blocks' first principal axes give it, a number of them that is drawn; half of the time
    averaged over four shifts of the grid, which leaves no seams."""
    mean, axes = dictionary[0], dictionary[1 : 1 + int(rng.integers(*KEPT, endpoint=True))]
    shifts = [tuple(rng.integers(0, BLOCK, 2)) for _ in range(4 if rng.random() < 0.5 else 1)]
    total = np.zeros(image.shape, dtype=np.float32)
    for down, right in shifts:
        total += _blockwise(image, int(down), int(right), mean, axes)
    return np.asarray(np.clip(np.rint(total / len(shifts)), 0, 255), dtype=np.uint8)


def _blockwise(image: Image, down: int, right: int, mean: Floats, axes: Floats) -> Floats:
    height, width = image.shape[:2]
    below, after = -(height + down) % BLOCK, -(width + right) % BLOCK
    padded = np.pad(image, ((down, below), (right, after), (0, 0)), mode="reflect").astype(np.float32)
    rows, columns = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    blocks = (
        padded.reshape(rows, BLOCK, columns, BLOCK, 3).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
    )
    rebuilt = (blocks - mean) @ axes.T @ axes + mean
    whole = rebuilt.reshape(rows, columns, BLOCK, BLOCK, 3).transpose(0, 2, 1, 3, 4).reshape(padded.shape)
    return np.asarray(whole[down : down + height, right : right + width], dtype=np.float32)
