"""The folder that a scan writes: whose it is, its parts, its table, and that each file in it is there whole or not.

scan.json       what was asked: folders, filters, model; another scan is refused
parts/          what was judged since the last table, in Parquet files
faces.parquet   the table, once the scan is through; it takes the place of the parts
summary.json    counts of the table
sheet.html      the most suspicious faces, on request
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from lensborn import disk
from lensborn.scan.errors import ScanError, cannot_write

TABLE = "faces.parquet"
SUMMARY = "summary.json"
SHEET = "sheet.html"
_SETTINGS = "scan.json"
_LISTING = ".listing.parquet"
_LOCK = ".lock"
_OLD = {"any_suffix": False}  # settings of scans that began before they could be set
_OTHER = "choose another --out, or start anew with --overwrite"


class Results:
    """The folder of one scan, held by this process while the `with` of `opened` lasts."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """See `opened`."""
        self.folder, self._settings, self._overwrite = folder, settings, overwrite
        self.table = folder / TABLE
        self.listing = folder / _LISTING
        self._parts = folder / "parts"

    @classmethod
    @contextmanager
    def opened(
        cls, folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False
    ) -> Iterator["Results"]:
        """Hold `folder`, made where it is missing, for the scan that `settings` (JSON) describe; `begin` then.

        Raises ScanError where it cannot be written, another process holds it, it has other files, or the results
        of a scan with other settings and `overwrite` is not set.
        """
        lock = FileLock(folder / _LOCK, timeout=0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
            if names and _SETTINGS not in names:
                raise ScanError(f"{folder} has other files: choose another folder")
            lock.acquire()
        except Timeout as error:
            raise ScanError(
                f"another scan writes to {folder}: wait for it, or choose another folder"
            ) from error
        except OSError as error:
            raise cannot_write(folder, error) from error
        try:
            results = cls(folder, settings, overwrite=overwrite)
            results._check()
            yield results
        finally:
            lock.release()

    def tables(self) -> list[Path]:
        """What was judged, from old to new: the table of an earlier scan, then the parts since."""
        return [path for path in (self.table, *sorted(self._parts.glob("*.parquet"))) if path.exists()]

    def next_part(self) -> Path:
        """The path of a part newer than all others."""
        last = max((int(path.stem) for path in self._parts.glob("*.parquet")), default=0)
        return self._parts / f"{last + 1:08}.parquet"

    def drop_old(self) -> None:
        """Remove what a new table leaves behind: the parts, whose rows it has, the listing, and an older sheet.

        Raises ScanError where the disk refuses.
        """
        self._drop(*self._parts.glob("*.parquet"), self.listing, self.folder / SHEET)

    def begin(self) -> None:
        """Write down whose the folder is, once there is something to judge; with `overwrite`, drop what it held.

        Raises ScanError where the disk refuses.
        """
        if self._overwrite:
            self._drop(*self._parts.glob("*.parquet"), self.folder / SHEET, self.table, self.folder / SUMMARY)
        # before anything else is there: a folder without it is somebody else's
        write_whole(self.folder / _SETTINGS, json.dumps(self._settings, indent=2) + "\n")
        try:
            self._parts.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _drop(self, *paths: Path) -> None:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _check(self) -> None:
        found = None if self._overwrite else self._found()
        if found is not None and (
            names := [
                name for name, value in self._settings.items() if found.get(name, _OLD.get(name)) != value
            ]
        ):
            raise ScanError(
                f"{self.folder} has the results of another scan (its {', '.join(names)} differ): {_OTHER}"
            )
        self._drop(*self.folder.glob(".*.new"), *self._parts.glob(".*.new"))  # of a scan that was killed

    def _found(self) -> dict[str, Any] | None:
        """What scan.json says; None where there is none. Raises ScanError where it cannot be read."""
        path = self.folder / _SETTINGS
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ScanError(f"{path} cannot be read: {_OTHER}") from error
        return found if isinstance(found, dict) else {}


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """As `disk.whole_file`, its name on the disk, too. Raises ScanError, with the remedy, where that refuses."""
    try:
        with disk.whole_file(path) as file:
            yield file
        disk.sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path.parent, error) from error


def write_whole(path: Path, text: str) -> None:
    """Write a text as `whole_file` does."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))
