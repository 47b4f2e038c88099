"""What sites and screens do to a picture, as repeatable steps; and the equalising that they start from.

A step takes the decoded equalised picture and gives a coded file. Steps of one family differ in strength alone, so
that a plot can draw a curve through them.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

QUALITY = 95  # of equalised pictures and of steps that are not about coding, without chroma subsampling
SCREEN = 1.25, 1.5  # device pixel ratios of common screens

Coder = Callable[[Image.Image], bytes]


@dataclass(frozen=True)
class Step:
    """One step. `strength`: what its family varies, in the family's own unit: quality, per cent, px, ratio."""

    name: str
    family: str
    strength: float
    apply: Coder


def equalise(crop: NDArray[np.uint8]) -> bytes:
    """JPEG of a crop (S, S, 3) uint8 RGB, padded with zeros after its end to the length of the raw pixels.

    Decoders ignore what follows the end of a picture, so that not even the length of the file differs between
    pictures. The JPEG of any picture is shorter than its pixels at this quality; ValueError if one were not.
    """
    data = _jpeg(Image.fromarray(crop), QUALITY, subsampling=0)
    if len(data) > crop.size:
        raise ValueError(f"a JPEG of {len(data)} bytes does not fit into {crop.size}: give a larger crop")
    return data.ljust(crop.size, b"\0")


def _jpeg(image: Image.Image, quality: int, subsampling: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling=subsampling)
    return stream.getvalue()


def _recompress(image: Image.Image, quality: int) -> bytes:
    return _jpeg(image, quality, subsampling=2)  # 4:2:0, as most sites have it


def _resize(image: Image.Image, share: float) -> bytes:
    size = round(image.width * share), round(image.height * share)
    return _jpeg(image.resize(size, Image.Resampling.BICUBIC), QUALITY, subsampling=0)


def _blur(image: Image.Image, sigma: float) -> bytes:
    return _jpeg(image.filter(ImageFilter.GaussianBlur(sigma)), QUALITY, subsampling=0)


def _webp(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=4)
    return stream.getvalue()


def _screenshot(image: Image.Image, ratio: float) -> bytes:
    """Enlarged by a screen's pixel ratio with bilinear interpolation, stored without loss."""
    stream = io.BytesIO()
    size = round(image.width * ratio), round(image.height * ratio)
    image.resize(size, Image.Resampling.BILINEAR).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _crop(image: Image.Image, share: float) -> bytes:
    side = round(image.width * share)
    left = (image.width - side) // 2
    return _jpeg(image.crop((left, left, left + side, left + side)), QUALITY, subsampling=0)


_STEPS = (
    *(Step(f"jpeg-{q}", "jpeg", q, partial(_recompress, quality=q)) for q in (95, 85, 75, 65, 50)),
    *(Step(f"webp-{q}", "webp", q, partial(_webp, quality=q)) for q in (80, 50)),
    *(Step(f"resize-{p}", "resize", p, partial(_resize, share=p / 100)) for p in (75, 50, 25)),
    *(Step(f"blur-{s:g}", "blur", s, partial(_blur, sigma=s)) for s in (0.5, 1, 2)),
    *(Step(f"screenshot-{r:g}", "screenshot", r, partial(_screenshot, ratio=r)) for r in SCREEN),
    *(Step(f"crop-{p}", "crop", p, partial(_crop, share=p / 100)) for p in (90, 75)),
)
STEPS = {step.name: step for step in _STEPS}
