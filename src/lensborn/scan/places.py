"""Where pictures lie: a disk, or an object store reached through fsspec. A picture is judged alike in both."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, NamedTuple, Protocol

from lensborn import defaults
from lensborn.detector import Detection, Detector
from lensborn.photo import PHOTO_SUFFIXES, UnreadableError, open_regular, reason_of, unfit_size
from lensborn.scan.errors import ScanError

# As the stores call it, the best first.
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "updated", "created")
LARGE_BYTES = 32 * 2**20  # beyond this, or where a store does not say, one object is held at a time
_LARGE = Lock()


class Found(NamedTuple):
    """A picture or a folder in a folder. `size`: bytes; `stamp`: changes with the content; None where unknown."""

    name: str
    is_folder: bool
    size: int | None = None
    stamp: str | None = None


class Place(Protocol):
    """What a scan asks of a place. Paths are as the place spells them."""

    def check(self, root: str) -> None:
        """Raise ScanError, with the remedy, where there is nothing at `root`, or it may not go into the results."""

    def is_folder(self, path: str) -> bool:
        """Whether pictures may lie below `path`; raises OSError where that cannot be told."""

    def file(self, path: str) -> Found:
        """The file at `path`, whatever its suffix; raises OSError where it cannot be looked up."""

    def names(self, folder: str, any_suffix: bool = False) -> list[Found]:
        """Pictures and folders right below `folder`; raises OSError where it cannot be listed.

        Pictures are told by suffix or, with `any_suffix`, are all files but hidden ones.
        """

    def read(self, path: str, size: int | None) -> bytes:
        """The bytes of a file, of at most `defaults.MAX_FILE_BYTES`; raises UnreadableError. `size`: as listed."""

    def judge(self, detector: Detector, path: str, size: int | None) -> Detection:
        """The faces of one file; a file that cannot be read gives the status "unreadable"."""


def place_of(path: str) -> Place:
    """The place that a path belongs to.

    Raises ScanError where it is in a store that cannot be set up, and where the address holds a password: every row
    of the results would repeat it.
    """
    if not is_remote(path):
        return Disk()
    protocol, _, rest = path.partition("://")
    host = rest.partition("/")[0]
    if ":" in host.rpartition("@")[0]:
        raise ScanError(
            f"the {protocol} address holds a password, which the results would repeat: leave it out, and give it "
            "in the way of that store (environment, or fsspec's configuration files)"
        )
    return _store(f"{protocol}://{host}")


@cache
def _store(address: str) -> "Store":
    return Store(address)


def is_remote(path: str) -> bool:
    """Whether a path is an address in an object store, `s3://bucket/prefix` or the like."""
    return "://" in path


class Disk:
    """Files of this machine; links to folders are not followed."""

    def check(self, root: str) -> None:
        """See `Place.check`."""
        try:
            if Path(root).is_dir():
                self.names(root)
            Path(root).stat()
        except OSError as error:
            raise ScanError(f"{root} cannot be read ({error.strerror}): check the path") from error

    def is_folder(self, path: str) -> bool:
        """See `Place.is_folder`."""
        return Path(path).is_dir()

    def file(self, path: str) -> Found:
        """See `Place.file`."""
        return Found(Path(path).name, False, *_size_and_stamp(Path(path).stat()))

    def names(self, folder: str, any_suffix: bool = False) -> list[Found]:
        """See `Place.names`. A folder named like a photograph is given as one: reading it says what is wrong."""
        with os.scandir(folder) as entries:
            found = []
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                if _is_picture(entry.name, any_suffix and not _leads_to_folder(entry)):
                    found.append(Found(entry.name, False, *_of_disk(entry)))
                elif is_folder:
                    found.append(Found(entry.name, True))
            return found

    def read(self, path: str, size: int | None) -> bytes:
        """See `Place.read`."""
        try:
            with open_regular(path) as file:
                return file.read(defaults.MAX_FILE_BYTES)
        except OSError as error:
            raise UnreadableError(reason_of(path, error)) from error

    def judge(self, detector: Detector, path: str, size: int | None) -> Detection:
        """See `Place.judge`."""
        return detector.detect(path, alone=False)


class Store:
    """An object store, by its address up to the host or bucket. Threads may share it; listings are not kept."""

    def __init__(self, address: str) -> None:
        """Set up the store, with what the address says and the settings that fsspec finds. Raises ScanError."""
        protocol = address.partition("://")[0]
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415  (for stores only)

            self._store, _ = url_to_fs(address, use_listings_cache=False)
        except ImportError as error:
            raise ScanError(f"{protocol}:// needs a package that is not installed: {error}") from error
        except Exception as error:  # of the store's own kinds
            raise ScanError(
                f"{protocol}:// cannot be read ({type(error).__name__}: {error}): check the address and the "
                "connection, or copy the pictures to a disk"
            ) from error

    def check(self, root: str) -> None:
        """See `Place.check`. An address with a query is refused: the results would repeat what signs it."""
        protocol, _, rest = root.partition("://")
        if "=" in rest.partition("?")[2]:  # a `?` alone may belong to a key
            raise ScanError(
                f"the {protocol} address holds a query (?name=value), which may be its signature, and the results "
                "would repeat it: leave it out, and give credentials in the way of that store (environment, or "
                "fsspec's configuration files), or copy the pictures to a disk"
            )
        try:
            there = self._store.exists(self._inner(root))
        except Exception as error:  # of the store's own kinds
            raise ScanError(
                f"{root} cannot be reached ({type(error).__name__}): check address, credentials and connection"
            ) from error
        if not there:
            raise ScanError(f"there is no {root}: check the address and the credentials")

    def is_folder(self, path: str) -> bool:
        """See `Place.is_folder`."""
        with _errors_of_a_store():
            return bool(self._store.isdir(self._inner(path)))

    def file(self, path: str) -> Found:
        """See `Place.file`."""
        with _errors_of_a_store():
            return _of_store(path.rpartition("/")[2], self._store.info(self._inner(path)))

    def names(self, folder: str, any_suffix: bool = False) -> list[Found]:
        """See `Place.names`. Keys with an empty part (`a//b`) lie in a folder without a name."""
        inner = self._inner(folder)
        if folder.endswith("/"):
            raise NotADirectoryError(folder)  # s3fs would list the folder that holds it, for ever
        with _errors_of_a_store():
            infos = self._store.ls(inner, detail=True)
        found = []
        for info in infos:
            path = info["name"].rstrip("/")
            name, is_folder = (
                "" if path == inner.rstrip("/") else path.rpartition("/")[2],
                info["type"] == "directory",
            )
            if is_folder:
                found.append(Found(name, True))
            elif _is_picture(name, any_suffix):
                found.append(_of_store(name, info))
        return found

    def read(self, path: str, size: int | None) -> bytes:
        """See `Place.read`. No more than the bytes allowed are fetched, whatever the store said of the size."""
        if size is not None and (reason := unfit_size(size)):
            raise UnreadableError(reason)
        try:
            data: bytes = self._store.cat_file(self._inner(path), start=0, end=defaults.MAX_FILE_BYTES + 1)
        except FileNotFoundError as error:
            raise UnreadableError("the store has no such file, or does not list it: scan again") from error
        except PermissionError as error:
            raise UnreadableError("no permission to read the file: grant it to these credentials") from error
        except Exception as error:  # of the store's own kinds
            raise UnreadableError(
                f"the store did not give the file ({type(error).__name__}): scan again"
            ) from error
        return data

    def judge(self, detector: Detector, path: str, size: int | None) -> Detection:
        """See `Place.judge`."""
        if path.endswith("/"):
            return detector.unreadable(path, "keys with an empty part (//) cannot be listed: rename them")
        large = _LARGE if size is None or size > LARGE_BYTES else nullcontext()
        try:
            with large:
                return detector.detect_bytes(self.read(path, size), path, alone=False)
        except UnreadableError as error:
            return detector.unreadable(path, str(error))

    def _inner(self, path: str) -> str:
        return str(self._store._strip_protocol(path))  # as every store spells paths without their address


@contextmanager
def _errors_of_a_store() -> Iterator[None]:
    """Errors of whatever kinds a store has, as OSError."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "the store has no such file or folder") from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, "these credentials have no permission") from error
    except Exception as error:
        raise OSError(f"the store failed with {type(error).__name__}") from error


def _is_picture(name: str, any_suffix: bool) -> bool:
    hidden = name.startswith(".")
    return PurePosixPath(name).suffix.lower() in PHOTO_SUFFIXES or (any_suffix and bool(name) and not hidden)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: judging it tells
        return False


def _of_disk(file: os.DirEntry[str]) -> tuple[int | None, str | None]:
    """Size, and time of the last change in ns; both None for what is no file that can be looked up."""
    try:
        return _size_and_stamp(file.stat())
    except OSError:
        return None, None


def _size_and_stamp(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, str(status.st_mtime_ns)


def _of_store(name: str, info: Mapping[str, Any]) -> Found:
    stamp = next((str(info[key]).strip('"') for key in _STAMPS if info.get(key)), None)
    return Found(name, False, info.get("size"), stamp)
