"""Labelled pictures to measure a detector on, wherever they lie: in folders, by a table, inside archives.

Whatever the layout on disk, a reader ends here, in a list of `Picture`. Sets are named; photographs carry their
source where it is known, since pictures of one source must stay on one side of every split.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from lensborn import defaults
from lensborn.datasets.generators import canonical
from lensborn.datasets.rows import RowsError, read_rows
from lensborn.photo import UnreadableError, find_photos, open_regular

Label = Literal["real", "fake"]
LABELS: dict[str | None, Label] = {"real": "real", "fake": "fake"}
MAX_LIST_BYTES = 256 * 2**20  # of a table or a list of pictures


class PictureSetError(ValueError):
    """A set of pictures that cannot be measured; the message names the remedy."""


@dataclass(frozen=True)
class Picture:
    """One picture of a set.

    `name`: what outputs call it, free of machine paths, unique within the set. `source`: photographer, site or
    album, "" where unknown. `span`: offset and length in bytes within `path`, of a member of an archive.
    """

    path: Path
    name: str
    set: str
    label: Label
    source: str = ""
    span: tuple[int, int] | None = None

    def read(self) -> bytes:
        """The coded picture. Raises UnreadableError where it is missing, no plain file, or too large."""
        offset, length = self.span or (0, defaults.MAX_FILE_BYTES)
        with open_regular(self.path, max_bytes=None if self.span else defaults.MAX_FILE_BYTES) as file:
            if length > defaults.MAX_FILE_BYTES:
                raise UnreadableError("larger than a picture may be: leave it out")
            file.seek(offset)
            return file.read(length)


def files_below(folder: Path) -> Iterator[Path]:
    """The pictures below a folder, sorted, without the `._` companions that macOS leaves on other disks."""
    return (path for path in find_photos([folder]) if not path.name.startswith("._"))


def is_within(file: str) -> bool:
    """Whether a file named by a list stays below the list's folder."""
    return not PurePath(file).is_absolute() and ".." not in PurePath(file).parts


def pictures_of_folder(name: str, folder: Path, label: Label) -> list[Picture]:
    """Every picture below a folder, named by its path within, the set's name first.

    Raises PictureSetError where the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise PictureSetError(f"{name}={folder} is not a folder: give the folder that holds the pictures")
    pictures = [
        Picture(path, f"{name}/{path.relative_to(folder).as_posix()}", name, label)
        for path in files_below(folder)
    ]
    if not pictures:
        raise PictureSetError(f"{name}={folder} holds no picture that lensborn reads")
    return pictures


def pictures_of_table(table: Path) -> list[Picture]:
    """The pictures of a CSV table: columns file, label (real or fake), set or generator, and source if known.

    `file` is relative to the table's folder, within it, and is the picture's name. Raises PictureSetError, with
    the line, where the table is no such table.
    """
    try:
        _, rows = read_rows(table, MAX_LIST_BYTES)
    except RowsError as error:
        raise PictureSetError(f"{table} cannot be read as a table: {error}") from error
    pictures = []
    for line, row in enumerate(rows, start=2):
        file, name, label = row.get("file"), row.get("set"), row.get("label")
        name = name or canonical(row.get("generator") or "")
        if not file or not name or label not in LABELS:
            raise PictureSetError(f"{table}, record {line}: needs file, set, and label (real or fake)")
        if not is_within(file):
            raise PictureSetError(
                f"{table}, record {line}: {file} must be relative to the table's folder, below it"
            )
        path = PurePath(file).as_posix()  # one name for a/b.jpg and ./a//b.jpg
        pictures.append(Picture(table.parent / file, path, name, LABELS[label], row.get("source") or ""))
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
    for label in LABELS.values():
        if not any(members[0].label == label for members in sets.values()):
            raise PictureSetError(f"no {label} pictures: give a set of them with --{label} or in the table")

    def key(picture: Picture) -> str:
        return hashlib.sha256(f"{seed}\t{picture.name}".encode("utf-8", "surrogatepass")).hexdigest()

    chosen: list[Picture] = []
    for members in sets.values():
        kept = set(sorted(map(key, members))[:limit])
        chosen += [member for member in members if key(member) in kept]
    return chosen
