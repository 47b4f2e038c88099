"""A scan: list, judge what is new, write parts, then the table and its summary. An engine does the judging."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

import lensborn
from lensborn.detector import Detector, ModelInfo, in_order
from lensborn.scan.errors import ScanError
from lensborn.scan.listing import Entry, Filters, listed, resolved_roots, unescaped
from lensborn.scan.places import place_of
from lensborn.scan.results import SUMMARY, Results, whole_file, write_whole
from lensborn.scan.summary import COLUMNS, summary, tally
from lensborn.scan.table import (
    IDENTITY,
    Row,
    Stretch,
    judged,
    read_columns,
    read_listing,
    rows_of,
    table_of,
    write_listing,
    write_table,
)

T = TypeVar("T")

FORMAT = 2  # of the results' folder
PART_ROWS = 10_000  # of a part, which are held in memory; fewer where the time of `_patience` has passed

Engine = Callable[
    [Iterator[Entry]], Iterator[tuple[int, list[Row]]]
]  # numbers of files, and all of their rows
Progress = Callable[[str, int, int | None], None]  # what is done, how many files are through, and of how many


def settings_of(roots: Sequence[str], filters: Filters, info: ModelInfo) -> dict[str, Any]:
    """What must be the same for results to be continued, as JSON; `roots` as `checked_roots` gives them.

    `folders_in_full`: where they lie, for `.` is another folder elsewhere; that stays in scan.json, as the table
    and its summary say no more of a path than was given.
    """
    return {
        "format": FORMAT,
        "lensborn": lensborn.__version__,
        "model": info.name,
        "sha256": info.sha256,
        "alpha": info.alpha,
        "folders": list(roots),
        "folders_in_full": resolved_roots(roots),
        **{
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(filters).items()
        },
    }


def scan(
    results: Results,
    roots: Sequence[str],
    filters: Filters,
    engine: Engine,
    settings: dict[str, Any],
    *,
    rate: float,
    progress: Progress = lambda *_: None,
    part_rows: int = PART_ROWS,
) -> dict[str, Any]:
    """Bring the table in `results` up to what lies below `roots` now; returns what summary.json holds.

    Files whose rows are there, with the same size and stamp, are not judged again, except unreadable ones. The
    table does not depend on how often this was interrupted, nor on the engine. `rate`: of false discoveries. Raises
    ScanError where there are no pictures, or the results cannot be written or read.
    """
    with whole_file(results.listing) as file:
        write_listing(file, _counted(listed(roots, filters), "listing", None, progress))
    n_listed = sum(1 for _ in read_listing(results.listing))
    if not n_listed:
        raise ScanError(
            "no pictures found there: check the folders and the filters; files whose names do not end as those of "
            "pictures do need --any-suffix"
        )
    results.begin()
    tables = results.tables()
    n_pending = sum(1 for _ in _pending(results, tables))
    progress("listing", n_listed, n_listed)
    progress("judging", 0, n_pending)
    parts = _Parts(results, part_rows)
    try:
        through = 0
        for files, rows in engine(_pending(results, tables)):
            parts.add(rows)
            through += files
            progress("judging", through, n_pending)
    finally:
        parts.write()
    asked = {name: value for name, value in settings.items() if name != "folders_in_full"}
    with whole_file(results.table) as file:
        found = judged(read_listing(results.listing), results.tables())
        write_table(
            file, _whole(_counted(found, "writing", n_listed, progress)), {"lensborn": json.dumps(asked)}
        )
    results.drop_old()
    told = asked | summary(tally(read_columns(results.table, COLUMNS)), rate)
    write_whole(results.folder / SUMMARY, json.dumps(told, indent=2) + "\n")
    return told


def on_this_machine(detector: Detector) -> Engine:
    """Judges on all cores of this machine, in order."""

    def run(entries: Iterator[Entry]) -> Iterator[tuple[int, list[Row]]]:
        return in_order(lambda entry: (1, judge(detector, entry)), entries)

    return run


def judge(detector: Detector, entry: Entry) -> list[Row]:
    """The rows of one file."""
    path = unescaped(entry.path)
    return rows_of(entry, place_of(path).judge(detector, path, entry.size))


class _Parts:
    """Collects the rows of whole files and writes them to parts of the results."""

    def __init__(self, results: Results, most: int) -> None:
        self._results, self._most = results, most
        self._rows: list[Row] = []
        self._started = self._written = time.monotonic()

    def add(self, rows: list[Row]) -> None:
        self._rows += rows
        now = time.monotonic()
        if len(self._rows) >= self._most or now - self._written > _patience(now - self._started):
            self.write()

    def write(self) -> None:
        if self._rows:
            with whole_file(self._results.next_part()) as file:
                pq.write_table(table_of(self._rows), file, compression="zstd")
        self._rows, self._written = [], time.monotonic()


def _patience(seconds: float) -> float:
    """Seconds between parts, and what a kill can lose, of a run of so many: few parts, and little lost."""
    return min(max(seconds / 100, 2.0), 60.0)


def _pending(results: Results, tables: Sequence[Path]) -> Iterator[Entry]:
    for entry, found in judged(read_listing(results.listing), tables, IDENTITY):
        if not found or found[0].status == "unreadable":
            yield entry


def _whole(found: Iterable[tuple[Entry, list[Stretch]]]) -> Iterator[Stretch]:
    missing = 0
    for _, stretches in found:
        missing += not stretches
        yield from stretches
    if missing:
        raise ScanError(f"{missing} files were not judged: run the same command again")


def _counted(items: Iterable[T], what: str, total: int | None, progress: Progress) -> Iterator[T]:
    for number, item in enumerate(items, start=1):
        yield item
        if number % 1000 == 0 or number == total:
            progress(what, number, total)
