"""A scan on a Ray cluster of this machine: two workers, one of them killed half way."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_scan import content, save_pictures, scan

pytest.importorskip("ray.data", reason="needs pip install 'lensborn[ray]'")

import ray

from lensborn.bundle import Bundle
from lensborn.detector import Detector
from lensborn.scan import cluster
from lensborn.scan.errors import ScanError
from lensborn.scan.listing import Entry, Filters, checked_roots, listed
from lensborn.scan.results import Results
from lensborn.scan.run import scan as scan_with
from lensborn.scan.run import settings_of
from lensborn.scan.table import Row


@pytest.fixture(scope="module", autouse=True)
def two_cores() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def parent(process: int) -> int:
    return int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])


def workers() -> list[int]:
    """The processes that judge for this one, by the name that Ray gives them; its raylet is their parent."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, process = (folder / "cmdline").read_bytes(), int(folder.name)
            if name.startswith(b"ray::MapWorker(") and parent(parent(process)) == os.getpid():
                found.append(process)
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_lost_worker_changes_no_byte(
    tiny_bundle: Bundle, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    album, here, there = tmp_path / "album", tmp_path / "here", tmp_path / "there"
    save_pictures(album, examples, 40)
    (album / "empty.jpg").write_bytes(b"")
    assert scan(album, "--out", here, "--model", tiny_bundle.path).exit_code == 1
    monkeypatch.setattr(cluster, "CHUNK", 2)
    detector = Detector.load(tiny_bundle.path)
    roots, killed = checked_roots([str(album)]), []

    def with_a_loss(entries: Iterator[Entry]) -> Iterator[tuple[int, list[Row]]]:
        for files, rows in cluster.on_ray(tiny_bundle.path, detector.info, workers=2)(entries):
            if not killed:
                at_work = workers()
                assert len(at_work) == 2
                os.kill(at_work[0], signal.SIGKILL)
                killed.append(at_work[0])
            yield files, rows

    settings = settings_of(roots, Filters(), detector.info)
    with Results.opened(there, settings) as results:
        scan_with(results, roots, Filters(), with_a_loss, settings, rate=0.1)
    assert killed
    assert content(there) == content(here)


def test_the_verb_runs_on_a_cluster(
    tiny_bundle: Bundle, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WINDOW", 3)
    here, there, options = tmp_path / "here", tmp_path / "there", ["--model", tiny_bundle.path]
    assert scan(examples, "--out", here, *options).exit_code == 0
    assert scan(examples, "--out", there, *options, "--engine", "ray").exit_code == 0
    assert content(there) == content(here)


def test_a_worker_with_another_model_is_told(tiny_bundle: Bundle, examples: Path) -> None:
    entries = listed(checked_roots([str(examples)]), Filters())
    other = replace(Detector.load(tiny_bundle.path).info, sha256="0" * 64)
    with pytest.raises(ScanError, match="a worker has another model tiny"):
        list(cluster.on_ray(tiny_bundle.path, other)(entries))


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_a_cluster_without_processors_is_told(workers: int | None) -> None:
    """A head that does no work, a node with accelerators alone, and one that is gone."""
    nodes: list[dict[str, Any]] = [
        {"Alive": True, "Resources": {"CPU": 0.0}},
        {"Alive": True, "Resources": {"GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 8.0}},
    ]
    with pytest.raises(ScanError, match="has processors: start one"):
        cluster.division(nodes, workers)
    nodes += [{"Alive": True, "Resources": {"CPU": cores}} for cores in (4.0, 16.0)]
    assert cluster.division(nodes, workers) == {None: (2, 4), 1: (1, 4), 3: (3, 4)}[workers]
    assert cluster.division(nodes, 10) == (10, 2)
    assert cluster.division(nodes, 100) == (100, 1)


def test_relative_paths_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    refused = scan("tests", "--out", tmp_path / "results", "--engine", "ray")
    assert (refused.exit_code, "from the root on" in refused.stderr) == (2, True)
