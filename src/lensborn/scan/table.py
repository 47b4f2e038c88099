"""The rows of a scan as Parquet: what was listed, what was judged, and the one table that both make.

Listing, parts and table are sorted by path (`listing.sort_key`), so each is read once, from start to end, whatever
its size. The table holds the newest rows of each listed file; those of files that changed or are gone are left out,
and nothing in it tells how often the scan was interrupted.
"""

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lensborn.detector import CAMERA_KEYS, Detection, FaceVerdict
from lensborn.scan.errors import ScanError
from lensborn.scan.listing import Entry, Key, sort_key

GROUP_ROWS = 65_536  # of a row group: what is held in memory at once of each table that is open
IDENTITY = ("path", "size", "stamp", "status")  # the columns that say whether a file was judged

LISTING = pa.schema([("path", pa.string()), ("size", pa.int64()), ("stamp", pa.string())])
SCHEMA = pa.schema(
    [
        *LISTING,
        ("status", pa.string()),
        ("error", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("camera_make", pa.string()),
        ("camera_model", pa.string()),
        ("camera_f_number", pa.float64()),
        ("camera_exposure_time_s", pa.float64()),
        ("camera_focal_length_mm", pa.float64()),
        ("camera_iso", pa.float64()),
        ("face", pa.int32()),
        ("box_x", pa.float64()),
        ("box_y", pa.float64()),
        ("box_w", pa.float64()),
        ("box_h", pa.float64()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("known_score", pa.float64()),
        ("known_p_value", pa.float64()),
        ("combined_p_value", pa.float64()),
        ("verdict", pa.string()),
        ("reasons", pa.list_(pa.string())),
    ]
)

Row = dict[str, Any]


class Stretch(NamedTuple):
    """Rows `start` to `stop` of `batch`, all of one file. `number`: of the table they are in, newer is higher."""

    key: Key
    number: int
    entry: Entry
    status: str
    batch: Any  # a pyarrow.RecordBatch
    start: int
    stop: int


def rows_of(entry: Entry, detection: Detection) -> list[Row]:
    """The rows of one file: one a face, or one where it has none. Keys: those of `SCHEMA`; absent ones are null."""
    file: Row = {
        **asdict(entry),
        "status": detection.status,
        "error": detection.error,
        "width": detection.width,
        "height": detection.height,
        **{f"camera_{key}": detection.camera[key] for key in CAMERA_KEYS},
    }
    return [file | _face(number, face) for number, face in enumerate(detection.faces)] or [file]


def table_of(rows: Sequence[Row]) -> Any:
    """A pyarrow.Table of rows, sorted by path; those of one file stay in their order."""
    return pa.Table.from_pylist(sorted(rows, key=lambda row: sort_key(row["path"])), SCHEMA)


def write_listing(file: BinaryIO, entries: Iterable[Entry]) -> None:
    """Write entries, in order, a row each."""
    with pq.ParquetWriter(file, LISTING) as writer:
        for group in _batched(entries, GROUP_ROWS):
            writer.write_table(pa.Table.from_pylist([asdict(entry) for entry in group], LISTING))


def read_listing(path: Path) -> Iterator[Entry]:
    """The entries that `write_listing` wrote."""
    with _opened(path) as file:
        for batch in file.iter_batches(GROUP_ROWS):
            yield from map(Entry, *(column.to_pylist() for column in batch.columns))


def judged(
    entries: Iterable[Entry], tables: Sequence[Path], columns: Sequence[str] | None = None
) -> Iterator[tuple[Entry, list[Stretch]]]:
    """Each entry with the rows of that very file, of the newest of `tables` that has it; none where none has.

    `entries` are in order, `tables` from old to new. `columns`: those read, None for all. Raises ScanError for a
    table that cannot be read.
    """
    stretches = heapq.merge(
        *(_one_after_another(chain, columns) for chain in _chains(tables)),
        key=lambda stretch: (stretch.key, -stretch.number),
    )
    found = groupby(stretches, key=lambda stretch: stretch.key)
    key, group = next(found, (None, iter(())))
    for entry in entries:
        wanted = sort_key(entry.path)
        while key is not None and key < wanted:
            key, group = next(found, (None, iter(())))
        same = [stretch for stretch in group if stretch.entry == entry] if key == wanted else []
        yield entry, [stretch for stretch in same if stretch.number == same[0].number]


def write_table(file: BinaryIO, stretches: Iterable[Stretch], metadata: dict[str, str]) -> None:
    """Write rows, in order, with `metadata` in the file's own. The same rows give the same bytes."""
    with pq.ParquetWriter(file, SCHEMA.with_metadata(metadata), compression="zstd") as writer:
        for group in _groups(_joined(stretches)):
            writer.write_table(group.combine_chunks())


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Some columns of a table, a piece at a time."""
    for batch in _batches(path, columns):
        yield batch.to_pydict()


def _face(number: int, face: FaceVerdict) -> Row:
    known = face.known_generator
    return {
        "face": number,
        **dict(zip(("box_x", "box_y", "box_w", "box_h"), face.box, strict=True)),
        "score": face.score,
        "p_value": face.p_value,
        "known_score": known.score if known else None,
        "known_p_value": known.p_value if known else None,
        "combined_p_value": face.combined_p_value,
        "verdict": face.verdict,
        "reasons": list(face.reasons),
    }


def _chains(tables: Sequence[Path]) -> list[list[tuple[int, Path]]]:
    """Tables, numbered, that can be read one after the other: of a scan that was interrupted often few are open."""
    ends = sorted((*_ends(path), number, path) for number, path in enumerate(tables))
    chains: list[list[tuple[Key, int, Path]]] = []
    for first, last, number, path in ends:
        ended = next((chain for chain in chains if chain[-1][0] < first), None)
        if ended is None:
            chains.append(ended := [])
        ended.append((last, number, path))
    return [[(number, path) for _, number, path in chain] for chain in chains]


def _ends(path: Path) -> tuple[Key, Key]:
    """The first and the last key of a table."""
    with _opened(path) as file:
        groups = (0, file.num_row_groups - 1)
        first, last = (file.read_row_group(group, columns=["path"]).column(0) for group in groups)
        return sort_key(first[0].as_py()), sort_key(last[-1].as_py())


def _one_after_another(chain: Sequence[tuple[int, Path]], columns: Sequence[str] | None) -> Iterator[Stretch]:
    for number, path in chain:
        for batch in _batches(path, columns):
            identity = zip(*(batch.column(name).to_pylist() for name in IDENTITY), strict=True)
            start = 0
            for (name, size, stamp, status), rows in groupby(identity):
                stop = start + sum(1 for _ in rows)
                yield Stretch(sort_key(name), number, Entry(name, size, stamp), status, batch, start, stop)
                start = stop


def _batches(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    with _opened(path) as file:
        yield from file.iter_batches(GROUP_ROWS, columns=columns)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A Parquet file to read. Raises ScanError; only what is surely damaged is to be removed, as it is work done.

    Arrow's readers say ArrowInvalid for a broken end of a file, and OSError without a number for broken pages; an
    error of the system has its number.
    """
    try:
        # opened here: a relative path with a colon would be taken for an address
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, pa.ArrowInvalid) or (isinstance(error, OSError) and error.errno is None):
            raise ScanError(
                f"{path} is damaged: remove it and run the same command again; the files in it are then judged anew"
            ) from error
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ScanError(
            f"{path} cannot be read ({reason}): check the disk, its permissions and the memory, then run the same "
            "command again; what was judged is kept"
        ) from error


def _joined(stretches: Iterable[Stretch]) -> Iterator[Any]:
    """Record batches, as few as can be: stretches that stand together in one are cut out as one."""
    batch, start, stop = None, 0, 0
    for stretch in stretches:
        if stretch.batch is batch and stretch.start == stop:
            stop = stretch.stop
            continue
        if batch is not None:
            yield _cut(batch, start, stop)
        batch, start, stop = stretch.batch, stretch.start, stretch.stop
    if batch is not None:
        yield _cut(batch, start, stop)


def _cut(batch: Any, start: int, stop: int) -> Any:
    """Rows of a batch; a small part of it is copied, or it would hold the whole in memory."""
    cut = batch.slice(start, stop - start)
    return cut if 4 * len(cut) >= len(batch) else cut.take(pa.array(range(len(cut))))


def _groups(batches: Iterable[Any]) -> Iterator[Any]:
    """Tables of `GROUP_ROWS` rows, the last of fewer, whatever the sizes of the batches."""
    waiting: list[Any] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        if rows >= GROUP_ROWS:
            table = pa.Table.from_batches(waiting, SCHEMA)
            whole = rows - rows % GROUP_ROWS
            yield from (table.slice(start, GROUP_ROWS) for start in range(0, whole, GROUP_ROWS))
            waiting, rows = table.slice(whole).to_batches(), rows - whole
    if rows:
        yield pa.Table.from_batches(waiting, SCHEMA)


def _batched(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    waiting = iter(entries)
    while group := list(islice(waiting, size)):
        yield group
