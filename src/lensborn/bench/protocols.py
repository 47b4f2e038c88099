"""Which pictures are measured, and how each of them becomes one score.

`published`: the file as it is, the whole picture, the largest face. It is how the literature measures, and
much of what it finds can be file format: see the audit in `bench.tables`.

`equalised`: the crop of the largest face of every picture, brought to one size, one codec and one quality.
All go down, since enlarging poor photographs to the size of generated ones is a shortcut of its own: crops
smaller than MIN_SIDE are left out.

A picture without a score is never dropped silently: it carries the reason and is counted in every table.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lensborn.datasets.pictures import Picture
from lensborn.detector import Detector, read_faces
from lensborn.faces import crop_face

SIDE = 192  # of the equalised crop, px: 95 % of the web's portraits have a crop of nearly that size
MIN_SIDE = 160  # smaller crops would be enlarged by more than 1.2
QUALITY = 95  # of the equalised JPEG, without chroma subsampling

Reason = Literal["no_face", "unreadable", "too_small"]
REASONS: tuple[Reason, ...] = ("no_face", "unreadable", "too_small")


@dataclass(frozen=True)
class Container:
    """What a file gives away before a pixel is decoded. Sizes in px and bytes; table mean 0 without JPEG."""

    width: int
    height: int
    size: int
    format: str
    quantisation: float


@dataclass(frozen=True)
class Measured:
    """A score with its p-value and the container it was read from, or else the reason why there is none."""

    score: float = math.nan
    p_value: float = math.nan
    reason: Reason | None = None
    container: Container | None = None


@dataclass(frozen=True)
class Result:
    """A picture and what a protocol made of it; `sha256` of the file's bytes, "" where it cannot be read."""

    picture: Picture
    measured: Measured
    sha256: str


Protocol = Callable[[Detector, Iterable[Path]], Iterator[Measured]]  # one Measured a path, in order


def read_container(file: Path | io.BytesIO, width: int, height: int) -> Container:
    """The container of a picture of known size; format "other" where Pillow does not open it."""
    size = file.getbuffer().nbytes if isinstance(file, io.BytesIO) else file.stat().st_size
    try:
        with Image.open(file) as image:  # decodes no pixels
            tables = getattr(image, "quantization", None) or {}
            mean = float(np.mean([np.mean(table) for table in tables.values()])) if tables else 0.0
            return Container(width, height, size, image.format or "other", mean)
    except Exception:  # HEIC, or a header that only `read_photo` takes
        return Container(width, height, size, "other", 0.0)


def published(detector: Detector, paths: Iterable[Path]) -> Iterator[Measured]:
    """The score of the largest face of each file as it is."""
    for detection in detector.detect_many(paths):
        if detection.status == "unreadable" or detection.width is None or detection.height is None:
            yield Measured(reason="unreadable")
        elif not detection.faces:
            yield Measured(reason="no_face")
        else:
            face = detection.faces[0]
            container = read_container(Path(detection.path), detection.width, detection.height)
            yield Measured(face.score, face.p_value, None, container)


def equalised(detector: Detector, paths: Iterable[Path]) -> Iterator[Measured]:
    """The score of the largest face's crop, each at one size and one quality (see the module's head).

    Its p-value is that of the bundle's calibration, which was made on crops of any size and quality: how many
    photographs it flags here is measured, not promised.
    """
    for photo in read_faces(paths, replace(detector.preprocessing, size=SIDE)):
        if photo.error is not None:
            yield Measured(reason="unreadable")
        elif not photo.faces:
            yield Measured(reason="no_face")
        elif photo.sides[0] < MIN_SIDE:
            yield Measured(reason="too_small")
        else:
            stream = io.BytesIO(equalise(photo.crops[0]))
            score = detector.score(_decoded(stream, detector.preprocessing.size)[None])
            p_value = detector.conformal.p_values(score)
            yield Measured(float(score[0]), float(p_value[0]), None, read_container(stream, SIDE, SIDE))


def equalise(crop: NDArray[np.uint8]) -> bytes:
    """JPEG bytes of a (SIDE, SIDE, 3) uint8 RGB crop, with the tables and subsampling of all others."""
    stream = io.BytesIO()
    Image.fromarray(crop).save(stream, "JPEG", quality=QUALITY, subsampling=0)
    return stream.getvalue()


def _decoded(stream: io.BytesIO, size: int) -> NDArray[np.uint8]:
    """The picture at the encoder's input size, resized as THE crop is: (size, size, 3) uint8."""
    with Image.open(stream) as image:
        return crop_face(np.asarray(image), (0, 0, SIDE, SIDE), size, scale=1)


PROTOCOLS: dict[str, Protocol] = {"published": published, "equalised": equalised}


def measure(pictures: Sequence[Picture], protocol: str, detector: Detector) -> Iterator[Result]:
    """Each picture through a protocol of PROTOCOLS, in order."""
    measured = PROTOCOLS[protocol](detector, [picture.path for picture in pictures])
    for picture, outcome in zip(pictures, measured, strict=True):
        yield Result(picture, outcome, _sha256(picture.path))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
