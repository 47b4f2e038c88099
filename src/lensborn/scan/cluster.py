"""Judging on the machines of a Ray cluster, as a map over Ray Data; the rows are those of one machine, to the bit.

A worker takes a machine: it loads the model once, and judges as many files at a time as there are cores. What a
lost worker had in hand is judged by another. Paths of pictures and model must mean the same on every machine.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.exceptions import RayError

from lensborn.detector import Detector, ModelInfo
from lensborn.scan.errors import ScanError
from lensborn.scan.listing import Entry
from lensborn.scan.run import Engine, on_this_machine
from lensborn.scan.table import LISTING, SCHEMA, Row, table_of

CHUNK = 64  # files that a worker takes at a time: what is done again where it is lost
WINDOW = 500_000  # files that the cluster is told of at a time, which bounds memory


def on_ray(model: Path | None, info: ModelInfo, workers: int | None = None) -> Engine:
    """Judges on a Ray cluster: the one that RAY_ADDRESS names, or one that is started here.

    `model`: its folder, None for the one shipped; every worker checks that it is the one of `info`. `workers`: None
    for one a machine. Raises ScanError where no cluster can be reached, and later where it fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster that starts here tells its makers
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise ScanError(f"no Ray cluster can be reached: check RAY_ADDRESS ({error})") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def run(entries: Iterator[Entry]) -> Iterator[tuple[int, list[Row]]]:
        while window := list(islice(entries, WINDOW)):
            yield from _judged(window, model, info, workers)

    return run


class Worker:
    """A map of listed files to their rows, called by Ray with a batch at a time."""

    def __init__(self, model: Path | None, info: ModelInfo) -> None:
        """Load the model. Raises ScanError where it is not the one of `info`."""
        detector = Detector.load(model, info.alpha)
        if detector.info != info:
            raise ScanError(f"a worker has another model {info.name}: give a path that all machines share")
        self._engine = on_this_machine(detector)

    def __call__(self, batch: Any) -> Any:
        """One row for a batch of listed files (pyarrow.Tables both): their number, and all of their rows.

        These travel as one value, as Arrow's stream: Ray may cut tables anywhere.
        """
        entries = [Entry(**row) for row in batch.to_pylist()]
        rows = [row for _, rows in self._engine(iter(entries)) for row in rows]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_table(table_of(rows))
        return pa.table({"files": [len(entries)], "rows": [sink.getvalue().to_pybytes()]})


def division(nodes: Sequence[Mapping[str, Any]], workers: int | None) -> tuple[int, int]:
    """How many workers there are, and how many cores Ray reserves for each, on `nodes` as `ray.nodes` gives them.

    `workers`: as many as were asked for, None for one a machine. A worker's threads are not bound by what is
    reserved: it judges on all cores of its machine. Raises ScanError where no node has processors.
    """
    cores = [int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]]
    machines = [number for number in cores if number]
    if not machines:
        raise ScanError(
            "no node of the Ray cluster has processors: start one with `ray start --address=... --num-cpus=...`, "
            "then run the same command again"
        )
    wanted = workers or len(machines)
    return wanted, max(min(sum(machines) // wanted, *machines), 1)


def _judged(
    entries: list[Entry], model: Path | None, info: ModelInfo, workers: int | None
) -> Iterator[tuple[int, list[Row]]]:
    wanted, reserved = division(ray.nodes(), workers)
    table = pa.Table.from_pylist([asdict(entry) for entry in entries], LISTING)
    chunks = [table.slice(start, CHUNK) for start in range(0, len(table), CHUNK)]
    found = ray.data.from_arrow(chunks).map_batches(
        Worker,
        fn_constructor_args=(model, info),
        batch_size=CHUNK,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=wanted),
        num_cpus=reserved,
    )
    try:
        for row in found.iter_rows():
            yield row["files"], pa.ipc.open_stream(row["rows"]).read_all().to_pylist()
    except RayError as error:  # its text is a traceback, which ends in the reason
        reason = str(error).strip().rpartition("\n")[2]
        raise ScanError(
            f"the Ray cluster failed: {reason}; run the same command again, what was written is kept"
        ) from error
