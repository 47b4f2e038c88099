"""Ways in which a picture reaches a reader: what training does to every example, of whichever class, alike."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lensborn.faces import crop_face

Image = NDArray[np.uint8]

KERNELS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
SIDES = (
    120,
    240,
)  # of a face crop when it is delivered, px: nearly every crop has the larger one, in every set
CHROMA = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420)


@dataclass(frozen=True)
class Delivery:
    """Ways in which a photograph reaches a reader without ceasing to be one; drawn anew for each example.

    The probabilities of the second half are 0 unless asked for: the pretext tasks learn without them.
    """

    quality: tuple[int, int] = (60, 98)  # of JPEG, both ends included
    shrink: float = 0.5  # smallest factor of size
    shrink_probability: float = 0.5
    brightness: float = 0.1  # gain within 1 ± this
    zoom: float = 0.12  # largest share of the side that a random crop takes away
    foreign_probability: float = 0.0  # shrunk with another library's kernel, some of which alias
    tone_probability: float = 0.0  # gamma, and gains of the channels
    blur_probability: float = 0.0
    sharpen_probability: float = 0.0
    noise_probability: float = 0.0
    again_probability: float = 0.0  # JPEG twice


#: What a platform and a few hands may do. For the known channel, which must not learn any of it.
ROUGH = Delivery(
    quality=(50, 98),
    foreign_probability=0.5,
    tone_probability=0.3,
    blur_probability=0.25,
    sharpen_probability=0.15,
    noise_probability=0.2,
    again_probability=0.3,
)


def deliver(image: Image, delivery: Delivery, rng: np.random.Generator) -> Image:
    """Tone, size, filters and JPEG as on the way through some site; (S, S, 3) in, (S', S', 3) out."""
    gain = 1 + rng.uniform(-delivery.brightness, delivery.brightness)
    image = np.asarray(cv2.convertScaleAbs(image, alpha=gain), dtype=np.uint8)
    if rng.random() < delivery.shrink_probability:
        image = shrink(image, max(32, round(image.shape[0] * rng.uniform(delivery.shrink, 1))), delivery, rng)
    image = _filter(image, delivery, rng)
    image = _jpeg(image, delivery, rng)
    return _jpeg(image, delivery, rng) if _happens(delivery.again_probability, rng) else image


def shrink(image: Image, side: int, delivery: Delivery, rng: np.random.Generator) -> Image:
    """A square picture at `side` pixels, by the crop's own resampling or, at times, by another library's."""
    if _happens(delivery.foreign_probability, rng):
        kernel = KERNELS[rng.integers(len(KERNELS))]
        return np.asarray(cv2.resize(image, (side, side), interpolation=kernel), dtype=np.uint8)
    return resized(image, side)


def resized(image: Image, side: int) -> Image:
    """A whole square picture at `side` pixels, by the crop's own resampling."""
    return crop_face(image, (0, 0, image.shape[1], image.shape[0]), side, scale=1.0)


def delivered_face(image: Image, side: int, delivery: Delivery, rng: np.random.Generator) -> Image:
    """A square face crop as some site may hand it on, then looked at with `side` pixels: (side, side, 3).

    Its first size is drawn between `SIDES` whatever size the crop has, so that no set is told by its own.
    """
    if rng.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
    whole = min(image.shape[:2])
    inner = round(whole * (1 - rng.uniform(0, delivery.zoom)))
    top, left = rng.integers(0, whole - inner + 1, 2)
    cut = np.ascontiguousarray(image[top : top + inner, left : left + inner])
    largest = max(min(SIDES[1], inner), 32)
    smallest = min(SIDES[0], largest)
    first = shrink(cut, int(rng.integers(smallest, largest + 1)), delivery, rng)
    return resized(deliver(first, delivery, rng), side)


def _filter(image: Image, delivery: Delivery, rng: np.random.Generator) -> Image:
    changed: NDArray[Any] = image.astype(np.float32)
    if _happens(delivery.tone_probability, rng):
        gains = 1 + rng.uniform(-0.08, 0.08, 3)
        changed = 255 * (changed / 255) ** np.exp(rng.uniform(-0.25, 0.25)) * gains
    if _happens(delivery.blur_probability, rng):
        changed = cv2.GaussianBlur(changed, (0, 0), rng.uniform(0.3, 1.2))
    if _happens(delivery.sharpen_probability, rng):
        smooth = cv2.GaussianBlur(changed, (0, 0), rng.uniform(0.6, 1.5))
        changed = changed + rng.uniform(0.2, 1.0) * (changed - smooth)
    if _happens(delivery.noise_probability, rng):
        changed = changed + rng.normal(0, rng.uniform(0.5, 5), image.shape)
    return np.asarray(np.clip(np.rint(changed), 0, 255), dtype=np.uint8)


def _jpeg(image: Image, delivery: Delivery, rng: np.random.Generator) -> Image:
    chroma = rng.choice(CHROMA)
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        int(rng.integers(delivery.quality[0], delivery.quality[1] + 1)),
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        int(chroma),
    ]
    _, coded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    decoded = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Draws nothing where it cannot happen, so that adding a way changes no other run."""
    return probability > 0 and rng.random() < probability
