"""A corpus: a folder holding `photos.csv`, one row a face crop, and the pictures that it names.

The table is what `lensborn prepare` writes and what training and fitting read. Columns that a reader does
not know are kept in `Crop.row`. Sets are split by a hash of the source, never by crop, so that no photograph,
album or photographer is on both sides, and a corpus that grows keeps every source where it was.
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lensborn import defaults
from lensborn.datasets.rows import RowsError, read_rows
from lensborn.disk import whole_file

TABLE = "photos.csv"
TAGS = ("f_number", "exposure_time_s", "focal_length_mm", "iso")
LANDMARKS = tuple(
    f"{part}_{axis}"
    for part in ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")
    for axis in ("x", "y")
)
COLUMNS = (
    "file",  # relative to the folder of the table
    "photo_sha1",
    "source",
    "make",
    "model",
    "software",
    *TAGS,
    "flash",
    "photo_width",
    "photo_height",
    "faces_in_photo",
    "detector_score",  # 0..100
    "crop_px_in_photo",
    "size",  # side of the saved crop, in pixels
    *LANDMARKS,  # pixels of the saved crop
    "stored",
)
_NEEDED = ("file", "photo_sha1", "source", *TAGS, "size")


class CorpusError(ValueError):
    """A table that cannot be read; the message names the line and the remedy."""


@dataclass(frozen=True)
class Crop:
    """One face crop of a corpus.

    `tags`: (4,) float64 in the order of `TAGS` (f-number, seconds, millimetres, ISO), positive; NaN where the
    photograph does not say. `landmarks`: (5, 2) float32 in pixels of the saved crop, NaN where one is not known,
    or None. `size`: side of the saved crop in pixels. `box`: x, y, width, height of the face in a picture that is
    not cut yet, in pixels.
    """

    file: Path
    photo: str
    source: str
    tags: npt.NDArray[np.float64]
    landmarks: npt.NDArray[np.float32] | None
    size: int
    row: Mapping[str, str]
    box: tuple[float, float, float, float] | None = None


def read_corpus(folder: str | Path) -> list[Crop]:
    """Read the crops of a corpus, in the order of the table, or those of FDF; the pictures are not opened.

    Raises CorpusError where the table is missing or malformed.
    """
    from lensborn.datasets.fdf import is_fdf, read_fdf  # noqa: PLC0415 - which makes crops itself

    folder = Path(folder)
    if not (folder / TABLE).exists() and is_fdf(folder):
        return read_fdf(folder)
    return [_crop(folder, line, row) for line, row in enumerate(read_table(folder), start=2)]


def read_table(folder: str | Path) -> list[dict[str, str]]:
    """Read the rows of `photos.csv` as text; raises CorpusError where it is missing or is no such table."""
    path = Path(folder) / TABLE
    try:
        columns, rows = read_rows(path)
    except RowsError as error:
        raise CorpusError(
            f"{path} cannot be read as a table: {error}; `lensborn prepare` makes one"
        ) from error
    if missing := [name for name in _NEEDED if name not in columns]:
        raise CorpusError(f"{path} lacks the columns {', '.join(missing)}: make it with `lensborn prepare`")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise CorpusError(f"{path}, row {line}: {len(columns)} fields expected: mend or remove the row")
    return rows


def write_table(
    folder: str | Path, rows: Iterable[Mapping[str, str]], columns: Sequence[str] = COLUMNS
) -> Path:
    """Write `photos.csv` aside, then rename it, so that a reader never sees half a table; returns its path.

    Columns that a row lacks are left empty; a column that is not in `columns` raises ValueError.
    """
    path = Path(folder) / TABLE
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode())
    return path


def split_of(key: str, splits: Sequence[tuple[str, float]] = defaults.SPLITS) -> str:
    """Name the split of a source: its SHA-256 as a number in [0, 1), against the cumulated shares.

    The same key falls in the same split on every machine, whatever else the corpus holds. The last split
    takes what rounding leaves.
    """
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    position = (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: exact, and never 1.0
    reached = 0.0
    for name, share in splits:
        reached += share
        if position < reached:
            return name
    return splits[-1][0]


def _crop(folder: Path, line: int, row: dict[str, str]) -> Crop:
    try:
        name = Path(row["file"])
        if not row["file"] or name.is_absolute() or ".." in name.parts:
            raise ValueError("the file must lie below the folder")
        return Crop(
            file=folder / name,
            photo=row["photo_sha1"],
            source=row["source"],
            tags=np.array([_tag(row[name]) for name in TAGS], dtype=np.float64),
            landmarks=_landmarks(row),
            size=int(float(row["size"])),
            row=row,
        )
    except (ValueError, OverflowError) as error:
        raise CorpusError(f"{folder / TABLE}, row {line}: {error}: mend or remove the row") from error


def _tag(text: str) -> float:
    if not text:
        return math.nan
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"a camera tag must be positive or empty, not {text!r}")
    return value


def _landmarks(row: Mapping[str, str]) -> npt.NDArray[np.float32] | None:
    values = [row.get(name, "") for name in LANDMARKS]
    if not all(values):
        return None
    points = np.array([float(value) for value in values], dtype=np.float32).reshape(5, 2)
    if not np.isfinite(points).all():
        raise ValueError("a landmark is not a finite number")
    return points
