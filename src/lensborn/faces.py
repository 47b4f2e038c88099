"""Faces of a picture with five landmarks, and the one crop that every other part uses.

The detector is YuNet (Wu, Peng and Yu, "YuNet: a tiny millisecond-level face detector", Machine
Intelligence Research, 2023), rebuilt for OpenVINO from libfacedetection's weights by
`tools/convert_yunet.py` (BSD-3-Clause, see THIRD_PARTY.md). It sees faces of about 10 to 300 pixels, so a
picture is looked at in two or three sizes and the findings are merged. A portrait is known at a glance, and most
pictures that are scanned are portraits. `docs/faces.md` has what was measured.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from lensborn import defaults
from lensborn.graph import Graph

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]

MODEL = Path(__file__).parent / "models" / "yunet" / "yunet.xml"
RESAMPLE = "pillow-bicubic-antialias"  # how crop_face resizes; recorded in bundles

CLOSE = 160  # longer side, in pixels, of the look at faces that fill the picture
WIDE = 640  # of the look at everything else
GLANCE = 256  # at least, of the look that a portrait gets in the place of the wide one ...
GLANCED = (384, 1024)  # ... in pictures whose longer side is more than the first, at most the second
PORTRAIT = 0.25  # share of the longer side that the face of a portrait takes
SUSPECT = 0.3  # confidence of a second face that makes it none
FINE = 4096  # upper bound of the look at small faces of large pictures
SMALL_FACE_PX = 64  # faces of this size in the picture ...
SEEN_AT_PX = 28  # ... shall be this large in the finest look
MARGIN = 32  # empty border of the close look: YuNet wants to see a face end
TILE = 704  # the fine look goes tile by tile, which bounds memory: the network keeps what its largest input needed
SEAM = 128  # tiles overlap by at least this; the wide look sees the faces that are larger
CELL = 64  # looks are padded to multiples of this: few shapes, each of which OpenVINO prepares once
BAND_PX = 2**22  # of a face that are resized at once: more of one would take a picture's memory again
HALVED = 8192  # pictures with a longer side than this are shrunk at once, which takes less memory
OVERLAP = 0.3  # two boxes with more intersection over union than this are one face (as in libfacedetection)
NESTED = 0.7  # so are two boxes of which one holds this share of the other
AGREE = 0.6  # candidates with this much in common with the best one are averaged: steadier points
EVERYWHERE: Box = (-math.inf, -math.inf, math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class Face:
    """One face.

    box: x, y, width, height in pixels of the picture, inside it. confidence: 0..1. landmarks: (5, 2) float32,
    x and y in pixels of left eye, right eye, nose tip, left and right mouth corner; left and right as seen in
    the picture. They may lie outside a picture that cuts the face off.
    """

    box: Box
    confidence: float
    landmarks: Floats


def crop_square(
    box: Sequence[float], width: int, height: int, scale: float = defaults.CROP_SCALE
) -> tuple[float, float, float]:
    """The square of `scale` times the longer side of the box, about its centre: x0, y0, side in pixels.

    It is shrunk to the picture's shorter side where it is larger, and shifted inside the picture.
    """
    x, y, w, h = box
    side = min(scale * max(w, h), float(width), float(height))
    x0 = min(max(x + w / 2 - side / 2, 0.0), width - side)
    y0 = min(max(y + h / 2 - side / 2, 0.0), height - side)
    return x0, y0, side


def crop_face(pixels: Pixels, box: Sequence[float], size: int, scale: float = defaults.CROP_SCALE) -> Pixels:
    """The face crop (size, size, 3) uint8 of a picture (H, W, 3) uint8; see crop_square and RESAMPLE.

    No pixel outside the square is used, so that a crop cut here and one read back from a file agree.
    """
    x0, y0, side = crop_square(box, pixels.shape[1], pixels.shape[0], scale)
    left, top = int(x0), int(y0)
    cut = pixels[top : math.ceil(y0 + side), left : math.ceil(x0 + side)]
    height, width = cut.shape[:2]
    x, y = x0 - left, y0 - top
    across, down = (x, min(x + side, width)), (y, min(y + side, height))  # min: rounding
    rows = max(BAND_PX // width, 1)
    if rows < height and size < width:  # else there is nothing to save
        cut = _narrowed(cut, rows, size, across)
        across = (0.0, float(size))
    return _resized(cut, (size, size), across, down)


def _narrowed(cut: Pixels, rows: int, size: int, across: tuple[float, float]) -> Pixels:
    """The columns `across` of a cut, made `size`, so many rows at a time. Pillow holds a picture in a third more
    memory than it has; as it resizes a square that shrinks across first and then down, the result is the same."""
    narrow = np.empty((len(cut), size, 3), np.uint8)
    for top in range(0, len(cut), rows):
        band = cut[top : top + rows]
        narrow[top : top + rows] = _resized(band, (size, len(band)), across, (0.0, float(len(band))))
    return narrow


def _resized(
    cut: Pixels, size: tuple[int, int], across: tuple[float, float], down: tuple[float, float]
) -> Pixels:
    """The part of a cut between these columns and rows, at a size (width, height); see RESAMPLE."""
    image = Image.fromarray(np.ascontiguousarray(cut))
    return np.asarray(
        image.resize(size, Image.Resampling.BICUBIC, box=(across[0], down[0], across[1], down[1]))
    )


def crop_faces(pixels: Pixels, boxes: Sequence[Sequence[float]], size: int, scale: float) -> Pixels:
    """The crops (N, size, size, 3) of several faces of a picture."""
    crops = np.zeros((len(boxes), size, size, 3), dtype=np.uint8)
    for crop, box in zip(crops, boxes, strict=True):
        crop[...] = crop_face(pixels, box, size, scale)
    return crops


def decode(level: Floats, stride: int, min_confidence: float) -> Floats:
    """Candidates (N, 15) of one level (h, w, 16): confidence, x, y, w, h, five points.

    Lengths are pixels of the model's input. Confidence is the geometric mean of the class and the object
    probability.
    """
    confidence = np.sqrt(level[..., 0] * level[..., 1])
    rows, columns = np.nonzero(confidence >= min_confidence)
    values = level[rows, columns]
    corner = np.stack([columns, rows], axis=1).astype(np.float32) * stride
    size = np.exp(np.clip(values[:, 4:6], -8, 8)) * stride  # bounded: nothing overflows on strange input
    start = values[:, 2:4] * stride + corner - size / 2
    points = values[:, 6:16] * stride + np.tile(corner, 5)
    return np.concatenate([confidence[rows, columns, None], start, size, points], axis=1)


def merge(candidates: Floats) -> Floats:
    """One row (N, 15) a face from candidates (M, 15), most confident first.

    The most confident candidate decides that there is a face, and drops those that overlap it or are nested with
    it; its place is the mean, weighted by confidence, of all that agree with it.
    """
    waiting = candidates[np.argsort(-candidates[:, 0], kind="stable")]
    kept: list[Floats] = []
    while len(waiting):
        best = waiting[0]
        start = np.maximum(best[1:3], waiting[:, 1:3])
        end = np.minimum(best[1:3] + best[3:5], waiting[:, 1:3] + waiting[:, 3:5])
        common = np.prod(np.maximum(end - start, 0), axis=1)
        areas = np.prod(waiting[:, 3:5], axis=1)
        union = areas[0] + areas - common
        agreeing = waiting[common >= AGREE * union]
        place = np.average(agreeing[:, 1:], axis=0, weights=agreeing[:, 0])
        kept.append(np.concatenate([best[:1], place]))
        apart = (common <= OVERLAP * union) & (common <= NESTED * np.minimum(areas[0], areas))
        apart[0] = False
        waiting = waiting[apart]
    return np.array(kept, dtype=np.float32).reshape(-1, 15)


class Look(NamedTuple):
    """One way to look at a picture shrunk by `scale`: at a part of it, with an empty border around."""

    part: Pixels  # (H, W, 3), a view of the shrunken picture
    border: int
    scale: float
    origin: tuple[int, int]  # x, y of the border's corner in the shrunken picture
    inner: Box  # x0, y0, x1, y1 there: a box that reaches out of it is cut off by a seam

    def canvas(self) -> Pixels:
        """What the model sees: the part within its border, sides made multiples of CELL."""
        height, width = self.part.shape[:2]
        sides = (-(-(side + 2 * self.border) // CELL) * CELL for side in (height, width))
        canvas = np.zeros((*sides, 3), np.uint8)
        canvas[self.border : self.border + height, self.border : self.border + width] = self.part
        return canvas


def _tiles(side: int) -> list[tuple[int, int]]:
    """Start and end of the tiles along a side: few, of one length up to TILE, overlapping by SEAM or more."""
    if side <= TILE:
        return [(0, side)]
    count = -(-(side - SEAM) // (TILE - SEAM))
    length = -(-(side + (count - 1) * SEAM) // count)
    starts = [(side - length) * i // (count - 1) for i in range(count)]
    return [(start, start + length) for start in starts]


def _shrunk(pixels: Pixels, height: int, width: int) -> Pixels:
    """By halves, which take a twentieth of the time, where the sides allow; what is left, by linear interpolation,
    a fifth of the time of area averaging, where that leaves no pixel out. A huge picture gets no half beside it."""
    while (full := pixels.shape[:2]) != (height, width):
        half = (full[0] // 2, full[1] // 2)
        even = full == (2 * half[0], 2 * half[1]) and half[0] >= height and half[1] >= width
        to = half if even and max(full) <= HALVED else (height, width)
        near = full[0] < 2 * to[0] and full[1] < 2 * to[1]
        way = cv2.INTER_LINEAR if near else cv2.INTER_AREA
        pixels = np.asarray(cv2.resize(pixels, to[::-1], interpolation=way), dtype=np.uint8)
    return pixels


def looks(pixels: Pixels) -> Iterator[Look]:
    """The ways in which a picture (H, W, 3) uint8 is looked at, finest first."""
    fine = _fine(pixels)
    return _looks(pixels, (fine, WIDE, CLOSE) if fine > WIDE else (WIDE, CLOSE))


def glances(pixels: Pixels) -> Iterator[Look]:
    """The looks at a picture (H, W, 3) uint8 that are enough for a portrait; small faces look as in the finest."""
    return _looks(pixels, (max(GLANCE, _fine(pixels)), CLOSE))


def _fine(pixels: Pixels) -> int:
    longer: int = max(pixels.shape[:2])
    return min(round(longer * SEEN_AT_PX / SMALL_FACE_PX), FINE)


def _looks(pixels: Pixels, targets: Sequence[int]) -> Iterator[Look]:
    full_height, full_width = pixels.shape[:2]
    for target in targets:
        scale = min(target / max(full_height, full_width), 1.0)
        height, width = max(round(full_height * scale), 1), max(round(full_width * scale), 1)
        pixels = _shrunk(pixels, height, width)  # each size from the one before
        if target == CLOSE:
            yield Look(pixels, MARGIN, scale, (-MARGIN, -MARGIN), EVERYWHERE)
            continue
        for (top, bottom), (left, right) in itertools.product(_tiles(height), _tiles(width)):
            inner = (
                left + 1 if left else -math.inf,
                top + 1 if top else -math.inf,
                right - 1 if right < width else math.inf,
                bottom - 1 if bottom < height else math.inf,
            )
            yield Look(pixels[top:bottom, left:right], 0, scale, (left, top), inner)


class FaceFinder:
    """Finds faces from about 20 pixels to the full frame; beside a large one, those that can be judged (about 64).

    Threads may share it. min_confidence: 0..1.
    """

    def __init__(self, *, min_confidence: float = defaults.MIN_CONFIDENCE) -> None:
        self.min_confidence = min_confidence
        self._graph = Graph(MODEL)

    def find(self, pixels: Pixels, pool: Executor | None = None) -> list[Face]:
        """The faces of a picture (H, W, 3) uint8 RGB, largest first, `defaults.MAX_FACES` of them at most.

        With a `pool`, the looks go side by side in its threads; the faces are the same. Raises ValueError when the
        array is of another shape or type.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ValueError(
                f"expected pixels (H, W, 3) uint8 RGB, got {pixels.shape} {pixels.dtype}; "
                "read_photo gives them so"
            )
        height, width = pixels.shape[:2]
        found = None
        if GLANCED[0] < max(height, width) <= GLANCED[1]:
            found = self._portrait(pixels, pool)
        if found is None:
            found = merge(self._candidates(looks(pixels), self.min_confidence, pool))
        faces = [_face(row, width, height) for row in found]
        faces = [face for face in faces if max(face.box[2:]) >= defaults.MIN_FACE_PX]
        return sorted(faces, key=lambda face: -face.box[2] * face.box[3])[: defaults.MAX_FACES]

    def _portrait(self, pixels: Pixels, pool: Executor | None) -> Floats | None:
        """The face (1, 15) of a picture that shows a large one and nothing else that may be one; else None."""
        candidates = self._candidates(glances(pixels), min(SUSPECT, self.min_confidence), pool)
        sure = merge(candidates[candidates[:, 0] >= self.min_confidence])
        alone = len(sure) == len(merge(candidates)) == 1
        return sure if alone and sure[0, 3:5].max() >= PORTRAIT * max(pixels.shape[:2]) else None

    def _candidates(self, several: Iterator[Look], min_confidence: float, pool: Executor | None) -> Floats:
        """Candidates (N, 15) of several looks, in pixels of the whole picture."""
        seen = partial(self._seen, min_confidence=min_confidence)
        return np.concatenate(list(pool.map(seen, several) if pool else map(seen, several)))

    def _seen(self, look: Look, min_confidence: float) -> Floats:
        levels = self._graph.one(look.canvas()[None])
        found = np.concatenate([decode(levels[f"stride{s}"][0], s, min_confidence) for s in (8, 16, 32)])
        found[:, 1:3] += look.origin
        found[:, 5:] += look.origin * 5
        start, end = found[:, 1:3], found[:, 1:3] + found[:, 3:5]
        whole = (start >= look.inner[:2]).all(axis=1) & (end <= look.inner[2:]).all(axis=1)
        candidates: Floats = found[whole]
        candidates[:, 1:] /= look.scale
        return candidates


def _face(row: Floats, width: int, height: int) -> Face:
    """A Face from a candidate (15,), its box clipped to the picture."""
    x0, y0 = max(float(row[1]), 0.0), max(float(row[2]), 0.0)
    x1, y1 = min(float(row[1] + row[3]), float(width)), min(float(row[2] + row[4]), float(height))
    return Face(
        box=(x0, y0, max(x1 - x0, 0.0), max(y1 - y0, 0.0)),
        confidence=min(float(row[0]), 1.0),
        landmarks=row[5:].reshape(5, 2).copy(),
    )
