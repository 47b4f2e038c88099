"""Flickr Diverse Faces as a corpus: FDF (128 px) and FDF256, joined with the EXIF of their photographs.

Sources: hukkelas/FDF, README.md and FDF256.md (metainfo, seven landmarks); YFCC100M's expansion pack
`yfcc100m_exif` (a line a photograph: id, tab, comma-separated `category.tag:value`, URL-encoded);
MZMMSEC/AIGFD_EXIF (a JSON file a photograph, `{"EXIF": {"Exposure Time": "1/125 sec", ...}}`). The folder, at
whatever depth, holds

    fdf_metainfo.json       images/ (FDF256, in train/ and val/) or images/128/ beside it, <index>.png
    yfcc100m_exif[.bz2]     or a folder of <photo id>.json with their EXIF, anywhere below the folder

A face without any of the four tags is left out. Mouth corners are not among the seven landmarks: they are NaN.
FDF's places are in 0..1 of the picture's side, (7, 2) landmarks; FDF256's landmarks are 14 numbers, and whether its
places are in pixels is documented nowhere: numbers beyond 2 are taken for pixels.
"""

import bz2
import json
import math
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lensborn.datasets.corpus import CorpusError, Crop
from lensborn.photo import EXPOSURE_TIMES_S, F_NUMBERS, FOCAL_LENGTHS_MM, ISOS

METAINFO = "fdf_metainfo.json"
MAX_METAINFO_BYTES = 8 * 2**30  # 1.5 million faces of about 2 kB each are 3 GB
MAX_NOTE_BYTES = 2**20
_EXIF_NAMES = ("yfcc100m_exif", "yfcc100m_exif.bz2")
_NUMBER = re.compile(  # f/2.8, 1/125 sec, 28.0 mm, 2,8; what follows a number is its unit or another one
    r"\s*(?:f\s*/?|iso)?\s*([0-9]+(?:[.,][0-9]+)?)(?:\s*/\s*([0-9]+(?:[.,][0-9]+)?))?(?![0-9]|[.,/][0-9])",
    re.IGNORECASE,
)
_PHOTO = re.compile(r"/photos/([^/]+)/([0-9]+)")
#: Tags in the order of `corpus.TAGS`: their names, and what is believable.
_TAGS = (
    (("F-Number", "FNumber", "Aperture Value"), F_NUMBERS),
    (("Exposure Time",), EXPOSURE_TIMES_S),
    (("Focal Length",), FOCAL_LENGTHS_MM),
    (("ISO Speed Ratings", "ISO"), ISOS),
)


def is_fdf(folder: Path) -> bool:
    """Whether FDF's metainfo lies in the folder, or a few levels below."""
    return next(_metainfos(folder), None) is not None


def read_fdf(folder: Path) -> list[Crop]:
    """The faces whose photograph has at least one tag; `box` is the face in pixels of the stored picture.

    Raises CorpusError where metainfo, pictures or EXIF are missing or malformed.
    """
    faces = [face for path in _metainfos(folder) for face in _faces(path)]
    if not faces:
        raise CorpusError(f"no {METAINFO} with faces below {folder}: give FDF's folder")
    photos = [photo_of(face) for _, face in faces]
    exif = _exif(folder, {photo for photo, _ in photos})
    return [
        crop
        for (file, face), (photo, owner) in zip(faces, photos, strict=True)
        if (crop := _crop(file, face, photo, owner, exif.get(photo, {}))) is not None
    ]


def photo_of(face: object) -> tuple[str, str]:
    """Flickr's id of a face's photograph and its owner, both "" where unknown."""
    if not isinstance(face, dict):
        return "", ""
    found = _PHOTO.search(str(face.get("photo_url", "")))
    owner, photo = found.groups() if found else ("", "")
    return photo, str(face.get("user_nsid") or owner or face.get("author") or "")


def parse_tag(text: str) -> float:
    """The number in "1/125 sec", "F2.8", "f/2.8", "28.0 mm", "100" or "50/10"; NaN where there is none."""
    found = _NUMBER.match(text[:64])
    if not found:
        return math.nan
    above, below = (float((part or "1").replace(",", ".")) for part in found.groups())
    return above / below if below else math.nan


def parse_line(line: str) -> tuple[str, dict[str, str]]:
    """Photo id and tags of a line of `yfcc100m_exif`."""
    photo, _, items = line.rstrip("\r\n").partition("\t")
    tags = {}
    for item in items.split(","):
        key, colon, value = item.partition(":")
        if colon:
            tags[urllib.parse.unquote_plus(key.partition(".")[2])] = urllib.parse.unquote_plus(value)
    return photo.strip(), tags


def _metainfos(folder: Path) -> Iterator[Path]:
    for pattern in ("", "*/", "*/*/", "*/*/*/"):
        yield from sorted(folder.glob(pattern + METAINFO))


def _faces(path: Path) -> list[tuple[Path, Any]]:
    """Pictures and what a metainfo says of them, in its order."""
    if path.stat().st_size > MAX_METAINFO_BYTES:
        raise CorpusError(f"{path.name} has more than {MAX_METAINFO_BYTES:,} bytes: split it")
    try:
        faces = json.loads(path.read_text("utf-8"))
        if not isinstance(faces, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is not FDF's metainfo ({error}): download it again") from error
    pictures = _pictures(path.parent / "images")
    if not pictures:
        raise CorpusError(f"no pictures in {path.parent / 'images'}: download FDF with its images")
    return [(pictures[index], face) for index, face in faces.items() if index in pictures]


def _pictures(images: Path) -> dict[str, Path]:
    """The largest copy of each picture, by index: FDF keeps a folder for each size, called after it."""
    sizes = sorted(
        (path for path in images.glob("*/") if path.name.isdecimal()), key=lambda path: int(path.name)
    )
    return {
        file.stem: file
        for folder in (images, *sizes)
        for file in folder.glob("*")
        if file.suffix.lower() == ".png"
    }


def _exif(folder: Path, photos: set[str]) -> Mapping[str, Mapping[str, str]]:
    """The tags of the photographs, from rows or from a file each."""
    rows = next((path for name in _EXIF_NAMES for path in sorted(folder.rglob(name))), None)
    found = dict(_rows(rows, photos) if rows else _notes(folder, photos))
    if not found:
        raise CorpusError(
            f"no EXIF below {folder}: put yfcc100m_exif (a file of YFCC100M) or a JSON file a photograph there"
        )
    return found


def _rows(path: Path, photos: set[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    with (
        bz2.open(path, "rt", encoding="utf-8", errors="replace")
        if path.suffix == ".bz2"
        else path.open(encoding="utf-8", errors="replace") as lines
    ):
        for line in lines:
            if line.partition("\t")[0].strip() in photos:
                yield parse_line(line)


def _notes(folder: Path, photos: Iterable[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    known = set(photos)
    for path in folder.rglob("*.json"):
        if path.stem not in known or not path.is_file() or path.stat().st_size > MAX_NOTE_BYTES:
            continue
        try:
            note = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # one broken file of many thousands: its photograph is left out
        if isinstance(note, dict) and isinstance(note.get("EXIF"), dict):
            yield path.stem, {str(key): str(value) for key, value in note["EXIF"].items()}


def _crop(
    file: Path, face: Mapping[str, Any], photo: str, owner: str, exif: Mapping[str, str]
) -> Crop | None:
    tags = np.array([_tag(exif, names, bounds) for names, bounds in _TAGS], dtype=np.float64)
    if np.isnan(tags).all():
        return None
    side = int(file.parent.name) if file.parent.name.isdigit() else 256  # images/128/, but FDF256's images/
    try:
        (x0, y0), (x1, y1) = _in_pixels(np.array(face["bounding_box"], dtype=np.float32).reshape(2, 2), side)
        points = _in_pixels(np.array(face["landmark"], dtype=np.float32).reshape(7, 2)[:3], side)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not (x1 > x0 and y1 > y0 and np.isfinite([x0, y0, x1, y1, *points.flat]).all()):
        return None
    eyes = points[1:][np.argsort(points[1:, 0])]  # left and right as seen in the picture
    unknown: npt.NDArray[np.float32] = np.full((2, 2), math.nan, dtype=np.float32)
    return Crop(
        file=file,
        photo=photo or file.stem,
        source=owner or photo or file.stem,
        tags=tags,
        landmarks=np.concatenate([eyes, points[:1], unknown]),
        size=side,
        row={},
        box=(float(x0), float(y0), float(x1 - x0), float(y1 - y0)),
    )


def _in_pixels(places: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    return places if (places > 2).any() else places * side


def _tag(exif: Mapping[str, str], names: Iterable[str], bounds: tuple[float, float]) -> float:
    for name in names:
        value = parse_tag(exif.get(name, ""))
        if bounds[0] <= value <= bounds[1]:
            return value
    return math.nan
