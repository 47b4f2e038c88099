"""The pictures below the roots of a scan, a folder at a time, in one order that does not depend on the disk.

The order is that of the paths, compared part by part. Listing, results and table all keep it, so that they can be
joined by reading each once, from start to end: only the names of one folder (and of those above it) are ever held.
"""

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path, PurePosixPath

from lensborn.scan.errors import ScanError
from lensborn.scan.places import Found, Place, is_remote, place_of

Key = tuple[str, ...]

_SURROGATE = re.compile(r"\\u(d[89a-f][0-9a-f]{2})")


@dataclass(frozen=True)
class Entry:
    """One file as it was listed. `path`: as results spell it (see `escaped`). `size`: bytes.

    `stamp`: what changes with the content: on a disk the time of the last change in ns, in an object store the
    ETag. Both are None where the place does not say.
    """

    path: str
    size: int | None
    stamp: str | None


@dataclass(frozen=True)
class Filters:
    """Which pictures of a folder are taken.

    Patterns are those of `fnmatch`, `*` standing for any characters, `/` included; they are compared with a name
    and with the path below the root, upper and lower case apart. A folder that `exclude` names is not entered.
    Files given one by one pass. `any_suffix`: files without the suffix of a picture are taken for pictures, too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_bytes: int = 0
    any_suffix: bool = False

    def enters(self, below: str) -> bool:
        """Whether a folder at this path below the root is listed."""
        return not _any_matches(below, self.exclude)

    def takes(self, below: str, size: int | None) -> bool:
        """Whether a file at this path below the root is judged; one of unknown `size` counts as large."""
        if not self.enters(below) or (size is not None and size < self.min_bytes):
            return False
        return not self.include or _any_matches(below, self.include)


def pattern_of(text: str) -> str:
    """A pattern without what a shell adds when it completes a folder's name: `./` before and `/` behind it."""
    return text.removeprefix("./").rstrip("/")


def escaped(path: str) -> str:
    """A path as valid text: `\\` twice, and bytes that are no text as `\\udcXX`; `unescaped` undoes it exactly."""
    return path.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode("utf-8")


def unescaped(path: str) -> str:
    """The path that the place knows, from its spelling in results."""
    parts = path.split("\\\\")  # from the left, so that a single backslash is left only before a surrogate
    return "\\".join(_SURROGATE.sub(lambda found: chr(int(found[1], 16)), part) for part in parts)


def sort_key(path: str) -> Key:
    """What paths, as results spell them, are ordered by: a folder's files stand together."""
    return tuple(path.split("/"))


def checked_roots(roots: Sequence[str]) -> list[str]:
    """The roots in order, as results spell them.

    Raises ScanError for one that is missing or cannot be listed, and for one that lies in another: a picture must
    have one path.
    """
    if "" in roots:
        raise ScanError("an empty path, as of a variable that is not set: name a folder, . for this one")
    spelt = sorted({_spelt(root) for root in roots}, key=lambda root: sort_key(escaped(root)))
    given: dict[PurePosixPath, str] = {}
    for root in spelt:
        if (other := given.setdefault(_resolved(root), root)) != root:
            raise _twice(root, other)
    for path, root in given.items():
        for parent in path.parents:
            if parent in given:
                raise _twice(root, given[parent])
        place_of(root).check(root)
    return [escaped(root) for root in spelt]


def lies_below(folder: str, roots: Sequence[str]) -> bool:
    """Whether a folder of this machine is, or lies in, one of the roots (as `checked_roots` gives them)."""
    inner = _resolved(folder)
    above = {inner, *inner.parents}
    return any(not is_remote(root) and _resolved(unescaped(root)) in above for root in roots)


def resolved_roots(roots: Sequence[str]) -> list[str]:
    """Where the roots (as `checked_roots` gives them) lie, whatever the folder that this process works in."""
    return [root if is_remote(root) else escaped(_resolved(unescaped(root)).as_posix()) for root in roots]


def listed(roots: Sequence[str], filters: Filters) -> Iterator[Entry]:
    """Every picture below the roots (as `checked_roots` gives them), in order, each path once.

    Files are chosen by suffix, unless `filters` takes any, and links to folders are not followed, as by
    `photo.find_photos`. A folder that may not be listed, or is named like a photograph, is an entry too: judging it
    says what is wrong. Raises ScanError for a root that is gone or may not be read, and where a folder could not be
    listed for another reason.
    """
    for together in _together(roots):
        merged = heapq.merge(
            *(_of_root(root, filters) for root in together), key=lambda entry: sort_key(entry.path)
        )
        for _, same in groupby(merged, key=lambda entry: entry.path):  # a link given, and found below a root
            yield next(same)


def _together(roots: Iterable[str]) -> Iterator[list[str]]:
    """Roots, one group after the other in order: in a group, paths below one may stand between those of another.

    That is where one is spelt as if it lay below another, and lies elsewhere: a link, or `..`.
    """
    group: list[str] = []
    first: Key = ()
    for root in roots:
        key = sort_key(root.rstrip("/"))
        if group and key[: len(first)] != first:
            yield group
            group = []
        if not group:
            first = key
        group.append(root)
    if group:
        yield group


def _of_root(root: str, filters: Filters) -> Iterator[Entry]:
    path = unescaped(root)
    place = place_of(path)
    names: list[Found] = []
    try:
        if is_folder := place.is_folder(path):
            names = _names(place, path, filters)
        else:
            file = place.file(path)
    except OSError as error:
        raise ScanError(
            f"{root} cannot be read ({error.strerror or error}): check it and run the same command again; what was "
            "judged is kept"
        ) from error
    if is_folder:
        yield from _below(place, path, names, filters)
    else:
        yield Entry(root, file.size, file.stamp)


def _below(place: Place, root: str, names_in_root: list[Found], filters: Filters) -> Iterator[Entry]:
    """Depth first; a stack, for folders may lie deeper than Python's own."""
    folders = [(root, _in_order(names_in_root))]
    while folders:
        folder, names = folders[-1]
        found = next(names, None)
        if found is None:
            folders.pop()
            continue
        path = f"{folder.rstrip('/')}/{found.name}"
        below = path[len(root) :].lstrip("/")
        if not found.is_folder:
            if filters.takes(below, found.size):
                yield Entry(escaped(path), found.size, found.stamp)
        elif filters.enters(below):
            try:
                folders.append((path, _in_order(_names(place, path, filters))))
            except FileNotFoundError:
                continue  # gone since the folder that holds it was listed
            except (PermissionError, NotADirectoryError):
                yield Entry(escaped(path), None, None)


def _names(place: Place, folder: str, filters: Filters) -> list[Found]:
    """What lies in a folder; raises OSError where that will not change by itself.

    Raises ScanError where it could not be told this time: the files in it would be taken for files that are gone.
    """
    try:
        return place.names(folder, filters.any_suffix)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        raise
    except OSError as error:
        raise ScanError(
            f"{escaped(folder)} cannot be listed ({error}): run the same command again; what was judged is kept"
        ) from error


def _in_order(names: list[Found]) -> Iterator[Found]:
    return iter(sorted(names, key=lambda found: (escaped(found.name), found.is_folder)))


def _twice(root: str, other: str) -> ScanError:
    return ScanError(f"{root} lies in {other}: give one of the two")


def _resolved(root: str) -> PurePosixPath:
    try:
        return PurePosixPath(root if is_remote(root) else Path(root).resolve().as_posix())
    except (
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: links that lead to each other, before Python 3.13
        raise ScanError(f"{root} cannot be read ({error}): check the path") from error


def _spelt(root: str) -> str:
    return root.rstrip("/") if is_remote(root) else Path(root).as_posix()


def _any_matches(below: str, patterns: Sequence[str]) -> bool:
    name = below.rpartition("/")[2]
    return any(fnmatchcase(below, pattern) or fnmatchcase(name, pattern) for pattern in patterns)
