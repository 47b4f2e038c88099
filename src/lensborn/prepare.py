"""Make a corpus of face crops from photographs whose EXIF says how they were taken.

Every face is cut by the one crop of this package, never enlarged, and saved without EXIF: what the camera
said goes to the table. A photograph already in the table is not done again, so an interrupted run goes on
where it stopped; the table is written aside and renamed, and never names a crop that is not on disk, whatever
stops the run. One process at a time prepares a corpus.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from lensborn import defaults
from lensborn.datasets.corpus import COLUMNS, LANDMARKS, TABLE, TAGS, CorpusError, read_table, write_table
from lensborn.disk import sync_folder, whole_file
from lensborn.faces import Face, FaceFinder, crop_face, crop_square
from lensborn.photo import CameraSettings, Photo, find_photos, open_regular, read_photo, reason_of

MAX_SIDE = 320  # of a saved crop, in pixels
QUALITY = 95  # of its JPEG, with full chroma
CROPS = "photos"  # the folder of the crops, beside the table
_LOCK = ".lock"
_WRITE_EVERY_S = 10.0  # the table: what a killed run has to do again

Row = dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """What became of one photograph: `crops` saved, or the reason why it was `kept_out`."""

    path: Path
    crops: int = 0
    kept_out: str | None = None
    error: str | None = None  # of an unreadable file: reason and remedy


def list_photos(photos: Iterable[Path], out: Path) -> list[tuple[Path, str | None]]:
    """List the photographs below `photos`, each with its source, leaving out what lies in the corpus `out`.

    The source is the first folder below the one given, or None for a photograph that lies in no such folder.
    """
    corpus = out.resolve()
    found = [(root, path) for root in photos for path in find_photos([root])]
    return [
        (path, _source(root, path))
        for root, path in found
        if corpus not in ((folder := path.parent.resolve()), *folder.parents)
    ]


def prepare(
    photos: Iterable[tuple[Path, str | None]],
    out: Path,
    *,
    keep_untagged: bool = False,
    report: Callable[[Outcome], None] = lambda _: None,
) -> None:
    """Cut the faces of `photos`, (path, source) each, into the corpus `out`, which may hold others already.

    A photograph without a source is its own: the SHA-1 of its file. Those that lack one of the four tags are
    kept out unless `keep_untagged`; so is every face whose crop would have fewer than `defaults.MIN_CROP_PX`
    pixels a side. `report` is called after each photograph. Raises CorpusError where `out` holds a table that
    cannot be read, or another process prepares it, OSError where it cannot be written.
    """
    (out / CROPS).mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / _LOCK, timeout=0).acquire()
    except Timeout as error:
        raise CorpusError(
            f"another `lensborn prepare` writes to {out}: wait for it, or choose another folder"
        ) from error
    with lock:
        rows: list[Row] = read_table(out) if (out / TABLE).exists() else []
        columns = list(dict.fromkeys((*COLUMNS, *(rows[0] if rows else ()))))
        done = {row["photo_sha1"] for row in rows}
        finder = FaceFinder()
        written = time.monotonic()
        try:
            for path, source in photos:
                outcome, new = _prepare_one(path, source, out, finder, done, keep_untagged=keep_untagged)
                rows += new
                done.update(row["photo_sha1"] for row in new)
                report(outcome)
                if time.monotonic() - written > _WRITE_EVERY_S:
                    _write(out, rows, columns)
                    written = time.monotonic()
        finally:
            _write(out, rows, columns)


def _write(out: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write the table, once the crops that it names, and their names, would outlast a loss of power."""
    for folder in (out, out / CROPS):
        sync_folder(folder)
    write_table(out, rows, columns)


def _prepare_one(
    path: Path, source: str | None, out: Path, finder: FaceFinder, done: set[str], *, keep_untagged: bool
) -> tuple[Outcome, list[Row]]:
    try:
        with open_regular(path) as file:
            sha1 = hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).hexdigest()
        if sha1 in done:
            return Outcome(path, kept_out="in the corpus already"), []
        photo = read_photo(path)
        missing = [tag for tag in TAGS if getattr(photo.camera, tag) is None]
        if missing and not keep_untagged:
            reason = "without camera tags" if len(missing) == len(TAGS) else f"without {', '.join(missing)}"
            return Outcome(path, kept_out=reason), []
        faces = finder.find(photo.pixels)
    except Exception as error:  # of this file alone; below, an error of the disk stops the run
        return Outcome(path, kept_out="unreadable", error=reason_of(path, error)), []
    rows = []
    for number, face in enumerate(faces):
        name = f"{CROPS}/{sha1[:12]}_{number}.jpg"
        if row := _save_crop(photo, face, out / name):
            whose = {"file": name, "photo_sha1": sha1, "source": source or sha1}
            rows.append(whose | {"faces_in_photo": str(len(faces))} | _camera_row(photo.camera) | row)
    if not rows:
        return Outcome(path, kept_out="faces too small" if faces else "without a face"), []
    return Outcome(path, crops=len(rows)), rows


def _save_crop(photo: Photo, face: Face, path: Path) -> Row | None:
    """Cut one face and save it; returns the columns that tell of it, or None where it is too small."""
    x0, y0, side = crop_square(face.box, photo.width, photo.height)
    size = min(int(side), MAX_SIDE)
    if size < defaults.MIN_CROP_PX:
        return None
    coded = io.BytesIO()  # where a disk is full, Pillow may write half a file, and not say so
    crop = Image.fromarray(crop_face(photo.pixels, face.box, size))
    crop.save(coded, "JPEG", quality=QUALITY, subsampling=0)
    with whole_file(path) as file:
        file.write(coded.getvalue())
    landmarks = (np.asarray(face.landmarks, dtype=np.float64) - (x0, y0)) * (size / side)
    return {
        "photo_width": str(photo.width),
        "photo_height": str(photo.height),
        "detector_score": str(round(100 * face.confidence)),
        "crop_px_in_photo": str(round(side)),
        "size": str(size),
        "stored": f"{MAX_SIDE} q{QUALITY} 444",
    } | {name: f"{value:.2f}" for name, value in zip(LANDMARKS, landmarks.ravel(), strict=True)}


def _camera_row(camera: CameraSettings) -> Row:
    values: Mapping[str, object] = vars(camera)
    names = ("make", "model", "software", *TAGS, "flash")
    return {name: "" if values[name] is None else str(values[name]) for name in names}


def _source(root: Path, path: Path) -> str | None:
    below = path.relative_to(root).parts
    # A name that is not UTF-8 is spelt with escapes: the table is UTF-8.
    return below[0].encode("utf-8", "backslashreplace").decode() if len(below) > 1 else None
