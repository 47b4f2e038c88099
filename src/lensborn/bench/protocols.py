"""Protocols: in which conditions a picture is shown to the detectors.

`published`: the file as it is, the whole picture, its largest face. It is how the literature measures, and much
of what it finds can be file format: see `bench.audit`.

`equalised`: the crop of the largest face, brought to one size, one codec and one quality, the file padded to one
length. At three sizes, since enlarging is a trace of its own, and equalising too hard destroys what could honestly
be seen: 192 px for faces that are hardly enlarged by it (1.2 times at most), 256 px for every face, and 512 px for
faces whose crop is at least that large. The share of enlarged crops stands in the tables, and the audit's second
number sees it.

`delivery`: what sites do to a picture afterwards, done to the equalised one; see `bench.delivery`.

A picture without a view is never dropped silently: it carries the reason and is counted in every table.
"""

import hashlib
import io
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lensborn import defaults
from lensborn.bench.delivery import STEPS, equalise
from lensborn.bench.views import View
from lensborn.datasets.pictures import Picture
from lensborn.detector import READ_AHEAD
from lensborn.faces import Box, FaceFinder, crop_face, crop_square
from lensborn.photo import UnreadableError, decode_photo

log = logging.getLogger(__name__)

Reason = Literal["no_face", "unreadable", "too_small", "seen"]
REASONS: tuple[Reason, ...] = ("no_face", "unreadable", "too_small", "seen")

PUBLISHED = "published"
EQUALISED = "equalised-256"  # every face; the other sizes are for faces that have them
SIDES = {"equalised-192": 192, EQUALISED: 256, "equalised-512": 512}  # px
SMALLEST = {
    "equalised-192": 160,
    EQUALISED: defaults.MIN_CROP_PX,
    "equalised-512": 512,
}  # side of the crop in the picture, px
DELIVERY = tuple(f"delivery/{name}" for name in STEPS)
DECODED_PIXELS = (
    12_000_000  # of a picture that waits decoded; larger ones are decoded again when they are looked at
)

#: The conditions of each protocol. Those of `delivery` include the equalised pictures that they start from.
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "published": (PUBLISHED,),
    "equalised": tuple(SIDES),
    "delivery": (EQUALISED, *DELIVERY),
}


@dataclass(frozen=True)
class Seen:
    """A picture with its view in each condition, or the reason why there is none.

    `side`: of the face crop in the picture, px; 0 without a face. `sha256`: of the file, "" where unreadable.
    `pixels`: of the picture, 0 where unreadable.
    """

    picture: Picture
    sha256: str
    side: float
    pixels: int
    views: dict[str, View | Reason]


def conditions_of(protocols: Iterable[str]) -> list[str]:
    """The conditions of some protocols, each once, in order."""
    return list(dict.fromkeys(condition for name in protocols for condition in PROTOCOLS[name]))


def is_delivery(condition: str) -> bool:
    """Whether a condition is a step of `delivery`."""
    return condition in DELIVERY


def show(
    pictures: Iterable[Picture], conditions: Sequence[str], known: frozenset[str] = frozenset()
) -> Iterator[Seen]:
    """Each picture in every condition, in order; a thread prepares a few pictures ahead.

    `known`: pictures not to be shown, by the first 16 digits of their SHA-256; their reason is "seen".
    """
    finder = FaceFinder()
    waiting: deque[Future[Seen]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for picture in pictures:
            waiting.append(pool.submit(_show, picture, finder, conditions, known))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _show(picture: Picture, finder: FaceFinder, conditions: Sequence[str], known: frozenset[str]) -> Seen:
    sha256 = ""
    try:
        data = picture.read()
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256[:16] in known:
            return Seen(picture, sha256, 0.0, 0, dict.fromkeys(conditions, "seen"))
        pixels = decode_photo(data).pixels
        faces = finder.find(pixels)
        if not faces:
            return Seen(picture, sha256, 0.0, 0, dict.fromkeys(conditions, "no_face"))
        box = faces[0].box
        side = crop_square(box, pixels.shape[1], pixels.shape[0])[2]
        views = _views(picture, data, pixels, box, side, conditions)
        return Seen(picture, sha256, side, pixels.shape[0] * pixels.shape[1], views)
    except Exception as error:  # a bad file never stops the others
        if not isinstance(error, UnreadableError):
            log.debug("unexpected error in %r", picture.name, exc_info=error)
        return Seen(picture, sha256, 0.0, 0, dict.fromkeys(conditions, "unreadable"))


def _views(
    picture: Picture, data: bytes, pixels: NDArray[np.uint8], box: Box, side: float, conditions: Sequence[str]
) -> dict[str, View | Reason]:
    equalised = {
        condition: equalise(crop_face(pixels, box, SIDES[condition]))
        for condition in SIDES
        if side >= SMALLEST[condition] and _wanted(condition, conditions)
    }
    views: dict[str, View | Reason] = {}
    for condition in conditions:
        if condition == PUBLISHED:
            decoded = pixels if pixels.shape[0] * pixels.shape[1] <= DECODED_PIXELS else None
            views[condition] = View(data, box, picture.set, picture.name, condition, decoded)
        elif condition in equalised:
            views[condition] = _whole(equalised[condition], picture, condition)
        elif is_delivery(condition) and EQUALISED in equalised:
            step = STEPS[condition.removeprefix("delivery/")]
            views[condition] = _whole(step.apply(_decoded(equalised[EQUALISED])), picture, condition)
        else:
            views[condition] = "too_small"
    return views


def _wanted(size: str, conditions: Sequence[str]) -> bool:
    return size in conditions or (size == EQUALISED and any(map(is_delivery, conditions)))


def _decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _whole(data: bytes, picture: Picture, condition: str) -> View:
    """A view all of which is the face crop."""
    with Image.open(io.BytesIO(data)) as image:  # decodes no pixels
        box = (0.0, 0.0, float(image.width), float(image.height))
    return View(data, box, picture.set, picture.name, condition)


def native_crop(view: View) -> NDArray[np.uint8]:
    """The pixels of the face crop as they are, without resampling: (S, S, 3) uint8."""
    height, width = view.pixels.shape[:2]
    x, y, side = (round(value) for value in crop_square(view.box, width, height))
    return view.pixels[y : y + side, x : x + side]
