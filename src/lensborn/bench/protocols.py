"""Which pictures are measured, and how each of them becomes one score.

`published`: the file as it is, the whole picture, the largest face. It is how the literature measures, and
much of what it finds can be file format: see the audit in `bench.tables`.

`equalised`: the crop of the largest face of every picture, brought to one size, one codec and one quality.
All go down, since enlarging poor photographs to the size of generated ones is a shortcut of its own: crops
smaller than MIN_SIDE are left out.

A picture without a score is never dropped silently: it carries the reason and is counted in every table.
"""

import csv
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

from lensborn.detector import Detector, read_faces
from lensborn.faces import crop_face
from lensborn.photo import find_photos

SIDE = 192  # of the equalised crop, px: 95 % of the web's portraits have a crop of nearly that size
MIN_SIDE = 160  # smaller crops would be enlarged by more than 1.2
QUALITY = 95  # of the equalised JPEG, without chroma subsampling

Label = Literal["real", "fake"]
_LABELS: dict[str | None, Label] = {"real": "real", "fake": "fake"}
Reason = Literal["no_face", "unreadable", "too_small"]
REASONS: tuple[Reason, ...] = ("no_face", "unreadable", "too_small")


class PictureSetError(ValueError):
    """A set of pictures that cannot be evaluated; the message names the remedy."""


@dataclass(frozen=True)
class Picture:
    """One file of a set. `name`: what outputs call it, free of machine paths; `source`: "" where unknown."""

    path: Path
    name: str
    set: str
    label: Label
    source: str


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


def pictures_of_folder(name: str, folder: Path, label: Label) -> list[Picture]:
    """Every picture below a folder, named by its path within, the set's name first.

    Raises PictureSetError where the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise PictureSetError(f"{name}={folder} is not a folder: give the folder that holds the pictures")
    pictures = [
        Picture(path, f"{name}/{path.relative_to(folder).as_posix()}", name, label, "")
        for path in find_photos([folder])
    ]
    if not pictures:
        raise PictureSetError(f"{name}={folder} holds no picture that lensborn reads")
    return pictures


def pictures_of_table(table: Path) -> list[Picture]:
    """The pictures of a CSV table: columns file, label (real or fake), set, and source if there is one.

    `file` is relative to the table's folder and is the picture's name. Raises PictureSetError, with the line,
    where the table is no such table.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PictureSetError(f"{table} cannot be read as a CSV table in UTF-8: {error}") from error
    pictures = []
    for line, row in enumerate(rows, start=2):
        file, name, label = row.get("file"), row.get("set"), row.get("label")
        if not file or not name or label not in _LABELS:
            raise PictureSetError(f"{table}, record {line}: needs file, set, and label (real or fake)")
        if Path(file).is_absolute():
            raise PictureSetError(f"{table}, record {line}: {file} must be relative to the table's folder")
        pictures.append(Picture(table.parent / file, file, name, _LABELS[label], row.get("source") or ""))
    if not pictures:
        raise PictureSetError(f"{table} has no rows")
    return pictures


def choose(pictures: Iterable[Picture], limit: int | None, seed: int) -> list[Picture]:
    """At most `limit` pictures a set, in their order: those whose name has the lowest hash under the seed.

    The first by name would all come from few sources. Raises PictureSetError where a set is given as real and
    as fake, a picture is listed twice, or a class has no picture.
    """
    sets: dict[str, list[Picture]] = {}
    for picture in pictures:
        sets.setdefault(picture.set, []).append(picture)
    for name, members in sets.items():
        if len({member.label for member in members}) > 1:
            raise PictureSetError(f"set {name} is given as real and as fake: give the two different names")
        if len({member.name for member in members}) < len(members):
            raise PictureSetError(f"set {name} lists a picture twice: give every set and file once")
    for label in _LABELS.values():
        if not any(members[0].label == label for members in sets.values()):
            raise PictureSetError(f"no {label} pictures: give a set of them with --{label} or in the table")

    def key(picture: Picture) -> str:
        return hashlib.sha256(f"{seed}\t{picture.name}".encode("utf-8", "surrogateescape")).hexdigest()

    chosen: list[Picture] = []
    for members in sets.values():
        kept = set(sorted(map(key, members))[:limit])
        chosen += [member for member in members if key(member) in kept]
    return chosen


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
