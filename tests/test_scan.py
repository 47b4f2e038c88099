"""A scan: the rows of `detect`, resumed to the byte, never half-written; listing, joining, counting, the sheet."""

import base64
import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import resource
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import false_discovery_control
from typer.testing import CliRunner

pa = pytest.importorskip("pyarrow", reason="the extra `scan` is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="the extra `scan` is not installed")

from lensborn.bundle import Bundle  # noqa: E402
from lensborn.cli import app  # noqa: E402
from lensborn.detector import Detector  # noqa: E402
from lensborn.photo import find_photos  # noqa: E402
from lensborn.scan import places  # noqa: E402
from lensborn.scan import run as running  # noqa: E402
from lensborn.scan import table as tables  # noqa: E402
from lensborn.scan.errors import ScanError  # noqa: E402
from lensborn.scan.listing import (  # noqa: E402
    Entry,
    Filters,
    checked_roots,
    escaped,
    listed,
    pattern_of,
    sort_key,
    unescaped,
)
from lensborn.scan.places import Disk, Found  # noqa: E402
from lensborn.scan.results import Results  # noqa: E402
from lensborn.scan.summary import BINS, benjamini_hochberg, histogram  # noqa: E402

MAIN = "from lensborn.cli import main; main()"
HOSTILE = (
    "<script>alert(1)<!--.jpg",
    "new\nline.jpg",
    "\x1b[2Jred.jpg",
    "back\\slash.jpg",
    'quo"te&.jpg',
)


def scan(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["scan", *map(str, arguments)])


def rows(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "faces.parquet").to_pylist()


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text("utf-8"))


def content(out: Path) -> tuple[bytes, bytes]:
    return (out / "faces.parquet").read_bytes(), (out / "summary.json").read_bytes()


def save_pictures(folder: Path, examples: Path, number: int, seed: int = 0) -> None:
    """Portraits, cut and recompressed, in folders of eight."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        below = folder / f"album-{index // 8}"
        below.mkdir(parents=True, exist_ok=True)
        with Image.open(examples / ("generated-man.jpg", "generated-woman.jpg")[index % 2]) as image:
            left, top = rng.integers(0, 60, 2)
            image.crop((left, top, left + 960, top + 960)).resize((240, 240)).save(below / f"{index}.jpg")


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """Portraits, a crowd, pictures without a face, and files that are none, two of them in the way of a sort."""
    folder = tmp_path_factory.mktemp("photos") / "album"
    save_pictures(folder, examples, 24)
    (folder / "album-1.jpg").write_bytes(b"")
    (folder / "album-1 b").mkdir()
    with Image.open(examples / "group-of-eight.jpg") as image:
        image.resize((image.width // 2, image.height // 2)).save(folder / "album-1 b" / "crowd.png")
    Image.new("RGB", (200, 100), "grey").save(folder / "plain.WEBP")
    whole = (folder / "album-0" / "0.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    (folder / "folder.jpg").mkdir()
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    (folder / "notes.txt").write_text("left out")
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, album: Path, tiny_bundle: Bundle) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "results"
    assert scan(album, "--out", out, "--model", tiny_bundle.path).exit_code == 1
    return out


# --- the table ----------------------------------------------------------------------------------------


def test_the_table_says_what_detect_says(undisturbed: Path, album: Path, detector: Detector) -> None:
    found = rows(undisturbed)
    assert [*found[0]] == tables.SCHEMA.names
    detections = {d.path: d for d in detector.detect_many(find_photos([album]))}
    assert {row["path"] for row in found} == set(detections)
    again = []
    for path in dict.fromkeys(row["path"] for row in found):
        status = Path(path).lstat()
        again += tables.rows_of(Entry(path, status.st_size, str(status.st_mtime_ns)), detections[path])
    for row, expected in zip(found, again, strict=True):
        if row["path"].endswith(("folder.jpg", "link.jpg")):
            if row["path"].endswith("link.jpg"):
                assert (row["size"], row["stamp"]) == (None, None)
            expected |= {"size": row["size"], "stamp": row["stamp"]}
        assert row == {name: expected.get(name) for name in tables.SCHEMA.names}
    assert Counter(row["status"] for row in found if not row["face"]) == {
        "ok": 25,
        "no_face": 1,
        "unreadable": 5,
    }
    assert max(row["face"] or 0 for row in found) >= 20


def test_the_summary_counts_the_table(undisturbed: Path, tiny_bundle: Bundle) -> None:
    found, summary = rows(undisturbed), told(undisturbed)
    faces = [row for row in found if row["face"] is not None]
    assert summary["files"] == {"ok": 25, "no_face": 1, "unreadable": 5}
    assert summary["faces"] == {
        verdict: sum(face["verdict"] == verdict for face in faces)
        for verdict in ("photographic", "ai_generated", "unsure")
    }
    judged = [face["p_value"] for face in faces if face["verdict"] != "unsure"]
    counts, _ = np.histogram(
        1 - np.array(judged), bins=BINS, range=(0, 1)
    )  # turned, for its upper ends are open
    assert sum(summary["p_values"]["counts"]) == len(judged) == summary["false_discovery_rate"]["faces"]
    assert summary["p_values"]["counts"] == counts[::-1].tolist()
    assert (summary["model"], summary["sha256"], summary["alpha"]) == ("tiny", tiny_bundle.sha256, 0.05)
    metadata = pq.read_metadata(undisturbed / "faces.parquet").metadata
    assert json.loads(metadata[b"lensborn"])["sha256"] == tiny_bundle.sha256


@pytest.mark.parametrize("channels", ["tiny_bundle", "known_bundle"])
def test_the_table_has_the_p_value_that_decided(
    request: pytest.FixtureRequest, examples: Path, tmp_path: Path, channels: str
) -> None:
    bundle = request.getfixturevalue(channels)
    save_pictures(tmp_path / "album", examples, 1)
    done = scan(tmp_path / "album", "--out", tmp_path / "results", "--model", bundle.path, "--sheet")
    assert done.exit_code == 0, done.output
    rows = [
        row for row in pq.read_table(tmp_path / "results" / "faces.parquet").to_pylist() if row["verdict"]
    ]
    assert {row["known_p_value"] is None for row in rows if row["verdict"] != "unsure"} >= {
        channels == "tiny_bundle"
    }
    for row in rows:
        if channels == "tiny_bundle":
            assert row["combined_p_value"] == row["p_value"]
        if row["verdict"] != "unsure":
            assert (row["combined_p_value"] <= 0.05) == (row["verdict"] == "ai_generated")


def test_nothing_else_is_left(undisturbed: Path) -> None:
    names = sorted(path.relative_to(undisturbed).as_posix() for path in undisturbed.rglob("*"))
    assert [name for name in names if name != ".lock"] == [
        "faces.parquet",
        "parts",
        "scan.json",
        "summary.json",
    ]


# --- going on -----------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from lensborn.detector import Detector
from lensborn.scan import run
from lensborn.scan.listing import Filters, checked_roots
from lensborn.scan.results import Results

album, out, bundle = sys.argv[1:]
detector = Detector.load(bundle)
roots = checked_roots([album])
settings = run.settings_of(roots, Filters(), detector.info)
with Results.opened(Path(out), settings) as results:
    print("started", flush=True)
    run.scan(results, roots, Filters(), run.on_this_machine(detector), settings, rate=0.1, part_rows=2)
print("done", flush=True)
"""


def killed(command: list[str], moment: Callable[[], bool], delay: float) -> None:
    """Start a scan, and kill it `delay` seconds after the `moment`."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "started\n"
        while not moment() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()


def test_killed_scans_make_the_table_of_an_undisturbed_one(
    undisturbed: Path, album: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """SIGKILL at random moments, the last one while the table takes the place of the parts.

    KILLS in the environment asks for another number of them.
    """
    rng, out = np.random.default_rng(), tmp_path / "results"
    command = [sys.executable, "-c", CHILD, str(album), str(out), str(tiny_bundle.path)]

    def parts() -> list[Path]:
        return list((out / "parts").glob("*.parquet"))

    for _ in range(int(os.environ.get("KILLS", "3"))):
        before = len(parts())
        more = int(rng.integers(0, 5))
        killed(command, lambda wanted=before + more: len(parts()) >= wanted, rng.uniform(0, 0.05))
        assert len(parts()) >= before or (out / "faces.parquet").exists()
        for part in parts():
            assert pq.read_table(part).num_rows  # each is whole
    killed(command, (out / "faces.parquet").exists, 0)
    done = scan(album, "--out", out, "--model", tiny_bundle.path)
    assert done.exit_code == 1
    assert "continuing: 26 of 31 files are done" in done.stderr
    assert content(out) == content(undisturbed)


def judged_in(out: Path, album: Path, detector: Detector, *, overwrite: bool = False, **options: Any) -> int:
    """Scan, and count what was judged."""
    pending: list[int] = []
    roots = checked_roots([str(album)])
    settings = running.settings_of(roots, Filters(), detector.info)

    def watched(entries: Iterator[Entry]) -> Iterator[tuple[int, list[tables.Row]]]:
        for files, found in running.on_this_machine(detector)(entries):
            pending.append(files)
            yield files, found

    with Results.opened(out, settings, overwrite=overwrite) as results:
        running.scan(results, roots, Filters(), watched, settings, rate=0.1, **options)
    return sum(pending)


def test_only_what_is_new_or_changed_is_judged(
    album: Path, detector: Detector, examples: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "album", tmp_path / "results"
    save_pictures(folder, examples, 10)
    assert judged_in(out, folder, detector) == 10
    first = rows(out)
    assert judged_in(out, folder, detector) == 0
    assert rows(out) == first
    changed, gone, added = (
        folder / "album-0" / "3.jpg",
        folder / "album-0" / "4.jpg",
        folder / "album-0" / "39.jpg",
    )
    changed.write_bytes((folder / "album-0" / "2.jpg").read_bytes())
    gone.unlink()
    added.write_bytes((folder / "album-0" / "1.jpg").read_bytes())
    same_size = folder / "album-1" / "8.jpg"
    os.utime(same_size, ns=(0, 12345))
    (folder / "bad.jpg").write_text("no picture")
    assert judged_in(out, folder, detector) == 4
    assert judged_in(out, folder, detector) == 1  # an unreadable file is tried again
    fresh = tmp_path / "fresh"
    judged_in(fresh, folder, detector)
    assert content(out) == content(fresh)
    by_path = {row["path"]: row for row in rows(out)}
    assert str(gone) not in by_path
    assert by_path[str(changed)]["score"] == by_path[str(folder / "album-0" / "2.jpg")]["score"]
    assert by_path[str(same_size)]["stamp"] == "12345"


def test_a_request_to_end_keeps_what_was_judged(album: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """SIGTERM as soon as the first picture is judged; parts of a thousand files would lose it."""
    code = """
import os, signal, sys
from lensborn.cli import main
from lensborn.scan import run
add = run._Parts.add
def watched(*arguments):
    add(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
run._Parts.add = watched
main()
"""
    out = tmp_path / "results"
    command = [sys.executable, "-c", code, "scan", album, "--out", out, "--model", tiny_bundle.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "run the same command again" in done.stderr
    (part,) = (out / "parts").glob("*.parquet")
    assert pq.read_table(part).num_rows >= 1


def test_results_of_another_scan_are_refused(
    undisturbed: Path, album: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    before = content(undisturbed)
    for options, name in (
        (["--alpha", 0.2], "alpha"),
        (["--exclude", "*.png"], "exclude"),
        (["--min-bytes", 10], "min_bytes"),
    ):
        refused = scan(album, "--out", undisturbed, "--model", tiny_bundle.path, *options)
        assert refused.exit_code == 2
        assert name in refused.stderr and "--overwrite" in refused.stderr
    assert "sha256" in scan(album, "--out", undisturbed).stderr
    assert content(undisturbed) == before
    out, options = tmp_path / "results", ["--model", tiny_bundle.path]
    assert scan(album / "album-0", "--out", out, *options).exit_code == 0
    assert scan(album / "album-1", "--out", out, *options).exit_code == 2
    assert scan(album / "album-1", "--out", out, *options, "--overwrite").exit_code == 0
    assert {Path(row["path"]).parent.name for row in rows(out)} == {"album-1"}


def test_a_scan_that_finds_nothing_drops_nothing_and_binds_to_nothing(
    undisturbed: Path, album: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    before = content(undisturbed)
    options = ["--out", undisturbed, "--model", tiny_bundle.path, "--overwrite", "--include", "*.jgp"]
    refused = scan(album, *options)
    assert refused.exit_code == 2
    assert "no pictures found" in refused.stderr
    assert content(undisturbed) == before
    options = [album / "album-0", "--out", tmp_path / "results", "--model", tiny_bundle.path]
    assert scan(*options, "--include", "*.jgp").exit_code == 2
    assert scan(*options, "--include", "*.jpg").exit_code == 0


def test_a_folder_that_could_not_be_begun_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ScanError, match="no space"), Results.opened(out, {"folders": []}) as results:
        results.begin()
    monkeypatch.undo()
    with Results.opened(out, {"folders": []}) as results:
        results.begin()
    assert (out / "parts").is_dir()


def test_a_scan_from_before_an_option_goes_on(album: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = [album / "album-0", "--out", tmp_path, "--model", tiny_bundle.path]
    assert scan(*options).exit_code == 0
    settings = json.loads((tmp_path / "scan.json").read_text())
    del settings["any_suffix"]
    (tmp_path / "scan.json").write_text(json.dumps(settings))
    assert scan(*options).exit_code == 0
    assert scan(*options, "--any-suffix").exit_code == 2


def test_results_may_be_called_as_an_address_begins(
    album: Path, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert scan(album / "album-0", "--out", "run:1", "--model", tiny_bundle.path).exit_code == 0
    assert rows(tmp_path / "run:1")
    refused = scan(album / "album-0", "--out", "s3://bucket/out", "--model", tiny_bundle.path)
    assert refused.exit_code == 2
    assert "results go to a disk" in refused.stderr
    assert not (tmp_path / "s3:").exists()


def test_an_empty_path_is_not_this_folder(tiny_bundle: Bundle, tmp_path: Path) -> None:
    refused = scan("", "--out", tmp_path / "results", "--model", tiny_bundle.path)
    assert refused.exit_code == 2
    assert "empty path" in refused.stderr


def test_files_of_any_name_are_judged_where_asked_for(
    album: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "hashes" / "sub").mkdir(parents=True)
    face = (album / "album-0" / "0.jpg").read_bytes()
    for name in ("0a1b", "sub/2c3d", ".hidden", "e.jpg"):
        (tmp_path / "hashes" / name).write_bytes(face)
    (tmp_path / "hashes" / "link").symlink_to("sub")
    refused = scan(
        tmp_path / "hashes", "--any-suffix", "--out", tmp_path / "hashes" / "out", "--model", tiny_bundle.path
    )
    assert refused.exit_code == 2
    assert "choose another --out" in refused.stderr
    options = [tmp_path / "hashes", "--out", tmp_path / "results", "--model", tiny_bundle.path]
    assert scan(*options).exit_code == 0
    assert {Path(row["path"]).name for row in rows(tmp_path / "results")} == {"e.jpg"}
    assert scan(*options, "--any-suffix", "--overwrite").exit_code == 0
    assert {Path(row["path"]).name for row in rows(tmp_path / "results")} == {"0a1b", "2c3d", "e.jpg"}


def test_a_link_to_itself_ends_no_scan(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a").write_bytes(b"")
    found = listed(checked_roots([str(tmp_path)]), Filters(any_suffix=True))
    assert [(Path(entry.path).name, entry.size) for entry in found] == [("a", 0), ("loop", None)]


@pytest.mark.parametrize("pattern", ["sub", "sub/", "./sub", "./sub/"])
def test_a_folder_is_left_out_however_it_is_written(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        (tmp_path / name).write_bytes(b"")
    found = listed(checked_roots([str(tmp_path)]), Filters(exclude=(pattern_of(pattern),)))
    assert [Path(entry.path).name for entry in found] == ["a.jpg"]


def test_the_same_words_in_another_folder_are_another_scan(
    detector: Detector, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    for name in ("one", "other"):
        save_pictures(tmp_path / name, examples, 1)
    asked = []
    for name in ("one", "other", "one/album-0/.."):
        monkeypatch.chdir(tmp_path / name)
        asked.append(running.settings_of(checked_roots(["."]), Filters(), detector.info))
    assert asked[0] == asked[2] != asked[1]
    with Results.opened(out, asked[0]) as results:
        engine = running.on_this_machine(detector)
        running.scan(results, ["."], Filters(), engine, asked[0], rate=0.1)
    assert [row["path"] for row in rows(out)] == ["./album-0/0.jpg"]
    with pytest.raises(ScanError, match="its folders_in_full differ"), Results.opened(out, asked[1]):
        pass
    assert str(tmp_path).encode() not in b"".join(content(out))
    stores = ["s3://bucket/prefix"]
    assert running.settings_of(stores, Filters(), detector.info)["folders_in_full"] == stores


@pytest.mark.parametrize("damage", ["", "{", "[]", "\udcff"])
def test_damaged_settings_can_be_overwritten(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "results"
    with Results.opened(out, {"folders": []}) as results:
        results.begin()
    (out / "scan.json").write_bytes(damage.encode("utf-8", "surrogateescape"))
    with pytest.raises(ScanError, match="--overwrite"), Results.opened(out, {"folders": []}):
        pass
    with Results.opened(out, {"folders": []}, overwrite=True) as results:
        results.begin()
    with Results.opened(out, {"folders": []}):
        pass


def test_two_scans_cannot_share_a_folder(album: Path, detector: Detector, tmp_path: Path) -> None:
    with (
        Results.opened(tmp_path / "results", {}),
        pytest.raises(ScanError, match="another scan"),
        Results.opened(tmp_path / "results", {}),
    ):
        pass
    with Results.opened(tmp_path / "results", {}):
        pass


@pytest.mark.parametrize("damage", ["no table", "end", "page", "empty"])
def test_a_damaged_part_is_named(tmp_path: Path, damage: str) -> None:
    part = tmp_path / "00000001.parquet"
    pq.write_table(tables.table_of([{"path": f"{number}.jpg"} for number in range(1000)]), part)
    whole = part.read_bytes()
    part.write_bytes(
        {
            "no table": b"PAR1 no table PAR1",
            "end": whole[:-100],
            "page": whole[:4] + bytes([255]) * 40 + whole[44:],
            "empty": b"",
        }[damage]
    )
    with pytest.raises(ScanError, match=r"00000001.parquet is damaged: remove it"):
        list(tables.judged([Entry("5.jpg", None, None)], [part]))


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "x"), PermissionError(errno.EACCES, "x"), pa.ArrowMemoryError("x")]
)
def test_a_part_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It may be whole, and hours of work: nobody is told to remove it."""
    part = tmp_path / "00000001.parquet"
    pq.write_table(tables.table_of([{"path": "5.jpg"}]), part)

    def failing(*_: object, **__: object) -> None:
        raise error

    for call in ("__init__", "read_row_group", "iter_batches"):
        with monkeypatch.context() as patch:
            patch.setattr(pq.ParquetFile, call, failing)
            with pytest.raises(ScanError, match=r"00000001.parquet cannot be read .* is kept") as refused:
                list(tables.judged([Entry("5.jpg", None, None)], [part]))
            assert "remove" not in str(refused.value)


def test_a_part_that_is_gone_is_not_called_damaged(tmp_path: Path) -> None:
    """The system's own error, as Arrow passes it on."""
    with pytest.raises(ScanError, match=r"gone.parquet cannot be read \(No such file or directory\)"):
        list(tables.read_columns(tmp_path / "gone.parquet", ["path"]))


# --- disks that refuse --------------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_a_full_disk_loses_nothing(
    undisturbed: Path, album: Path, detector: Detector, tmp_path: Path, share: float
) -> None:
    """Room for files of a share of the table stops settings, listing, a part, or the table; the rest is whole."""
    out, room = tmp_path / "results", int(share * (undisturbed / "faces.parquet").stat().st_size) - 1
    with files_of_at_most(max(room, 100)), pytest.raises(ScanError, match=r"no space is left .* free some"):
        judged_in(out, album, detector, part_rows=4)
    assert not (out / "faces.parquet").exists()
    judged = {row["path"] for part in out.glob("parts/*") for row in pq.read_table(part).to_pylist()}
    left = judged_in(out, album, detector)
    assert left <= 31 - len(judged) + 5  # unreadable files are tried again
    assert content(out) == content(undisturbed)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_disk_that_cannot_sync_folders_holds_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Some filesystems have no such call for folders; of a file, the same answer is a refusal."""
    refused = stat.S_ISDIR

    def failing(descriptor: int) -> None:
        if refused(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    with Results.opened(tmp_path / "results", {"folders": []}) as results:
        results.begin()
    refused = stat.S_ISREG
    with (
        pytest.raises(ScanError, match="cannot be written"),
        Results.opened(tmp_path / "other", {}) as results,
    ):
        results.begin()


def test_a_full_disk_is_wrong_usage_for_the_shell(album: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    with files_of_at_most(100):
        refused = scan(album, "--out", tmp_path / "results", "--model", tiny_bundle.path)
    assert refused.exit_code == 2
    assert "no space is left" in refused.stderr and "Traceback" not in refused.output


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="users of POSIX")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(ScanError, match="may not be written"), Results.opened(tmp_path / "results", {}):
            pass
    finally:
        os.seteuid(user)
    (tmp_path / "file").write_text("")
    with pytest.raises(ScanError, match="check the path"), Results.opened(tmp_path / "file" / "results", {}):
        pass


def test_old_files_that_may_not_be_removed(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk's last word, once the table is written; and where a scan starts anew."""
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "a.jpg").write_text("no picture")
    unlink = Path.unlink

    def refusing(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".parquet":
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    for overwrite in (False, True):
        with pytest.raises(ScanError, match="results may not be written: get the permission"):
            judged_in(tmp_path / "results", tmp_path / "album", detector, overwrite=overwrite)
    monkeypatch.undo()
    judged_in(tmp_path / "results", tmp_path / "album", detector)
    assert not [*(tmp_path / "results" / "parts").iterdir()]


def test_a_folder_with_other_files_is_refused(album: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    refused = scan(album, "--out", tmp_path, "--model", tiny_bundle.path, "--overwrite")
    assert refused.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# --- listing ------------------------------------------------------------------------------------------


@given(st.lists(st.text(st.characters()), max_size=20, unique=True))
def test_escaped_paths_are_text_and_can_be_told_apart(paths: list[str]) -> None:
    spelt = [escaped(path) for path in paths]
    assert [unescaped(path) for path in spelt] == paths
    assert len(set(spelt)) == len(paths)
    for path in spelt:
        path.encode("utf-8")


@runs(max_examples=30)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["a", "a b", "a-b", "x.jpg", "\udce9", "\\", "é", "𝄞"]),
            min_size=1,
            max_size=4,
        ),
        max_size=12,
    )
)
def test_a_listing_is_in_order_and_whole(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for parts in paths:
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            folder = root.joinpath(*parts[:-1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{parts[-1]}.jpg").write_bytes(b"x")
    found = [entry.path for entry in listed(checked_roots([str(root)]), Filters())]
    keys = [sort_key(path) for path in found]
    assert all(one < other for one, other in itertools.pairwise(keys))
    assert {unescaped(path) for path in found} == {str(path) for path in find_photos([root])}


def names(root: Path, **filters: Any) -> list[str]:
    return [entry.path.removeprefix(f"{root}/") for entry in listed([str(root)], Filters(**filters))]


def test_several_roots_are_in_one_order(
    album: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/x.jpg", "b c/x.jpg", "a.jpg", "d/e/x.jpg", "here/!.jpg", "here/z.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to("d")
    monkeypatch.chdir(tmp_path / "here")
    roots = checked_roots(["../link", "../b c/", ".", "../b", "../a.jpg"])
    found = [entry.path for entry in listed(roots, Filters())]
    assert found == sorted(found, key=sort_key)
    expected = {"../link/e/x.jpg", "../b c/x.jpg", "./!.jpg", "./z.jpg", "../b/x.jpg", "../a.jpg"}
    assert set(found) == expected


def test_roots_spelt_in_each_other_are_in_one_order(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link, and `..`: they lie elsewhere, and their pictures stand between those of the other root."""
    for name in ("root/a.jpg", "root/z.jpg", "elsewhere/m.jpg", "linked/m.jpg", "b c/x.jpg", "file.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "root" / "link").symlink_to("../linked")
    (tmp_path / "root" / "k.jpg").symlink_to("../file.jpg")  # found below root, and given
    monkeypatch.chdir(tmp_path)
    given = ["root", "root/link", "root/../elsewhere", "root/k.jpg", "b c"]
    roots = checked_roots(given)
    found = [entry.path for entry in listed(roots, Filters())]
    assert found == [
        "b c/x.jpg",
        "root/../elsewhere/m.jpg",
        "root/a.jpg",
        "root/k.jpg",
        "root/link/m.jpg",
        "root/z.jpg",
    ]
    assert found == sorted(found, key=sort_key)
    settings = running.settings_of(roots, Filters(), detector.info)
    with Results.opened(tmp_path / "results", settings) as results:
        engine = running.on_this_machine(detector)
        scanned = running.scan(results, roots, Filters(), engine, settings, rate=0.1)
    assert scanned["files"]["unreadable"] == len(found) == len(rows(tmp_path / "results"))


def test_one_folder_by_two_spellings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    for roots in (["a", str(tmp_path / "a")], ["link", "a"], ["a/../a", "a"], [".", "a"], ["a", "loop"]):
        with pytest.raises(ScanError, match=r"lies in|cannot be read"):
            checked_roots(roots)


def test_many_roots_are_checked_in_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each path is compared with its own parents, not with every other root."""
    compared: list[PurePosixPath] = []
    monkeypatch.setattr(PurePosixPath, "is_relative_to", lambda *paths: compared.append(paths[0]))
    roots = [str(tmp_path / f"{number}") for number in range(200)]
    for root in roots:
        Path(root).mkdir()
    assert checked_roots(roots) == sorted(roots)
    assert len(compared) <= len(roots)


def test_filters(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "thumbs/a.jpg", "deep/thumbs/c.jpg", "deep/d.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    assert names(tmp_path) == ["a.jpg", "b.png", "deep/d.jpg", "deep/thumbs/c.jpg", "thumbs/a.jpg"]
    assert names(tmp_path, include=("*.png", "d.*")) == ["b.png", "deep/d.jpg"]
    assert names(tmp_path, exclude=("thumbs",)) == ["a.jpg", "b.png", "deep/d.jpg"]
    assert names(tmp_path, exclude=("deep/thumbs",)) == ["a.jpg", "b.png", "deep/d.jpg", "thumbs/a.jpg"]
    assert names(tmp_path, include=("*.jpg",), exclude=("deep/*",)) == ["a.jpg", "thumbs/a.jpg"]
    assert names(tmp_path, min_bytes=10) == ["deep/d.jpg", "deep/thumbs/c.jpg", "thumbs/a.jpg"]


def test_folders_that_overlap_or_are_missing(album: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = ["--out", tmp_path / "results", "--model", tiny_bundle.path]
    for folders, words in (
        ([album, album / "album-0"], "lies in"),
        ([tmp_path / "missing"], "check the path"),
        ([tmp_path], "no pictures"),
        (["nowhere://bucket"], "nowhere://"),
        ([album, "--fdr", 1], "--fdr"),
        ([album, "--alpha", 0], "--alpha"),
    ):
        refused = scan(*folders, *options)
        assert refused.exit_code == 2
        assert words in refused.stderr
    assert checked_roots([f"{album}/", str(album)]) == [str(album)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(), ["a.jpg", "b", "c.jpg"]),
        (FileNotFoundError(), ["a.jpg", "c.jpg"]),
        (OSError(errno.EIO, "Input/output error"), None),
    ],
)
def test_a_folder_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: list[str] | None
) -> None:
    """What may not be listed is told; a disk that fails stops the scan, or its files would seem gone."""
    for name in ("a.jpg", "b/x.jpg", "c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    in_folder = Disk.names

    def failing(self: Disk, folder: str, any_suffix: bool) -> list[Found]:
        if folder.endswith("b"):
            raise error
        return in_folder(self, folder, any_suffix)

    monkeypatch.setattr(Disk, "names", failing)
    if expected is None:
        with pytest.raises(ScanError, match="run the same command again"):
            names(tmp_path)
    else:
        assert names(tmp_path) == expected


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("names", PermissionError(errno.EACCES, "Permission denied")),
        ("names", FileNotFoundError(errno.ENOENT, "No such file or directory")),
        ("names", OSError(errno.EIO, "Input/output error")),
        ("is_folder", PermissionError(errno.EACCES, "Permission denied")),
        ("file", OSError(errno.ESTALE, "Stale file handle")),
        ("file", FileNotFoundError(errno.ENOENT, "No such file or directory")),
    ],
)
def test_a_folder_given_that_fails_later_is_named(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: OSError
) -> None:
    """Not the results' folder, which has no part in it; and no file of an earlier scan seems gone."""
    root, out = tmp_path / ("album.jpg" if call == "file" else "album"), tmp_path / "results"
    root.touch() if call == "file" else root.mkdir()
    roots = checked_roots([str(root)])
    settings = running.settings_of(roots, Filters(), detector.info)

    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(Disk, call, failing)
    with Results.opened(out, settings) as results, pytest.raises(ScanError) as refused:
        engine = running.on_this_machine(detector)
        running.scan(results, roots, Filters(), engine, settings, rate=0.1)
    assert str(root) in str(refused.value) and str(out) not in str(refused.value)
    assert (error.strerror or "") in str(refused.value) and "run the same command again" in str(refused.value)


def test_a_picture_given_that_is_gone_stops_the_scan(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    roots = checked_roots([str(tmp_path / "a.jpg")])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ScanError, match=r"a.jpg cannot be read \(No such file"):
        list(listed(roots, Filters()))


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
def test_hostile_names(tiny_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "album", tmp_path / "results"
    save_pictures(folder, examples, 1)
    (picture,) = folder.rglob("*.jpg")
    files = [*HOSTILE, os.fsdecode(b"caf\xe9.jpg"), "caf\\udce9.jpg"]
    for name in files:
        (folder / name).write_bytes(picture.read_bytes())
    done = scan(folder, "--out", out, "--model", tiny_bundle.path, "--sheet")
    assert done.exit_code == 0, done.output
    found = rows(out)
    assert {unescaped(row["path"]) for row in found} == {
        str(picture),
        *(f"{folder}/{name}" for name in files),
    }
    assert {row["status"] for row in found} == {"ok"}
    assert len({row["score"] for row in found}) == 1
    check_sheet(out, len(found), len(found))
    page = (out / "sheet.html").read_text("utf-8")
    assert "<script" not in page and "\x1b" not in page and "&lt;script&gt;" in page
    assert scan(folder, "--out", out, "--model", tiny_bundle.path).exit_code == 0
    assert rows(out) == found


# --- joining ------------------------------------------------------------------------------------------

PATHS = ["a", "a b/c", "a/b", "a/b/c", "b", "c/d"]
HISTORY = st.lists(  # of each part, the version of the files in it
    st.dictionaries(st.sampled_from(PATHS), st.integers(0, 2), min_size=1), max_size=6
)


@runs(max_examples=60)
@given(HISTORY, st.dictionaries(st.sampled_from(PATHS), st.integers(0, 2)), st.integers(1, 5))
def test_the_newest_rows_of_listed_files_are_joined(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[dict[str, int]],
    now: dict[str, int],
    group_rows: int,
) -> None:
    """Against a dictionary, for any history of parts; the bytes depend on the rows alone."""
    folder, newest = tmp_path_factory.mktemp("parts"), {}
    paths = []
    for number, part in enumerate(history):
        made = []
        for path, version in part.items():
            entry = dataclasses.asdict(Entry(path, 1, str(version)))
            faces = [
                entry | {"status": "ok", "face": face, "score": number + 0.5} for face in range(1 + version)
            ]
            newest[path, version] = faces
            made += faces
        paths.append(folder / f"{number}.parquet")
        pq.write_table(tables.table_of(made), paths[-1], row_group_size=group_rows)
    entries = [Entry(path, 1, str(now[path])) for path in sorted(now, key=sort_key)]
    expected = [face for entry in entries for face in newest.get((entry.path, int(entry.stamp or 0)), [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "GROUP_ROWS", group_rows)
        found = list(tables.judged(entries, paths))
        assert [entry for entry, _ in found] == entries
        written = io.BytesIO()
        tables.write_table(written, (stretch for _, stretches in found for stretch in stretches), {"a": "b"})
        again = io.BytesIO()
        whole = folder / "whole.parquet"
        if expected:
            pq.write_table(tables.table_of(expected), whole)
        joined = tables.judged(entries, [whole] if expected else [])
        tables.write_table(again, (stretch for _, stretches in joined for stretch in stretches), {"a": "b"})
    assert written.getvalue() == again.getvalue()
    read = pq.read_table(written).to_pylist()
    assert [(row["path"], row["stamp"], row["face"], row["score"]) for row in read] == [
        (row["path"], row["stamp"], row["face"], row["score"]) for row in expected
    ]


# --- counting -----------------------------------------------------------------------------------------


def flagged_literally(p_values: Sequence[float], rate: float) -> int:
    """The largest k with p_(k) <= rate k / m, by its definition."""
    ordered, m = sorted(p_values), len(p_values)
    return max((k for k in range(1, m + 1) if ordered[k - 1] <= rate * k / m), default=0)


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.lists(st.integers(1, n + 1).map(lambda k: k / (n + 1)), max_size=60)
    ),
    st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5, 0.9]),
)
def test_benjamini_hochberg_is_its_definition(p_values: list[float], rate: float) -> None:
    flagged, threshold = benjamini_hochberg(Counter(p_values), rate)
    assert flagged == flagged_literally(p_values, rate)
    assert flagged == (0 if threshold is None else sum(p <= threshold for p in p_values))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_benjamini_hochberg_is_scipy_s(rate: float) -> None:
    rng = np.random.default_rng(0)
    p_values = np.concatenate([rng.uniform(size=900), rng.beta(0.2, 9, size=100)])
    flagged, _ = benjamini_hochberg(Counter(p_values.tolist()), rate)
    assert 0 < flagged == (false_discovery_control(p_values, method="bh") <= rate).sum()


def test_benjamini_hochberg_keeps_its_rate() -> None:
    """Conformal p-values of 900 photographs and 100 faces unlike them: false alarms among the flagged."""
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(200):
        calibration = np.sort(rng.normal(size=500))
        scores = np.concatenate([rng.normal(size=900), rng.normal(4, 1, size=100)])
        p_values = (1 + 500 - np.searchsorted(calibration, scores)) / 501
        _, threshold = benjamini_hochberg(Counter(p_values.tolist()), 0.1)
        flagged = p_values <= (0 if threshold is None else threshold)
        shares.append(flagged[:900].sum() / max(flagged.sum(), 1))
    assert np.mean(shares) <= 0.1


def test_bins_have_their_upper_ends() -> None:
    assert histogram(Counter({k / BINS: k for k in range(1, BINS + 1)})) == list(range(1, BINS + 1))
    assert histogram(Counter({1e-9: 1, 0.0500001: 2, 1.0: 3})) == [1, 2, *[0] * (BINS - 3), 3]


# --- the contact sheet --------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.sources: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def check_sheet(out: Path, faces: int, pictures: int) -> str:
    """The page is whole, and holds its pictures; returns its text."""
    text = (out / "sheet.html").read_text("utf-8")
    page = Page()
    page.feed(text)
    assert page.tags["figure"] == faces
    assert page.tags["img"] == len(page.sources) == pictures
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not any(name.startswith("on") for name in page.attributes)
    for source in page.sources:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (160, 160)
    return text


def test_a_sheet_shows_the_most_suspicious_faces(album: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    options = ["--out", out, "--model", tiny_bundle.path]
    assert scan(album, *options).exit_code == 1
    assert not (out / "sheet.html").exists()
    assert scan(album, *options, "--sheet").exit_code == 1
    judged = [row for row in rows(out) if row["verdict"] not in (None, "unsure")]
    text = check_sheet(out, min(len(judged), 100), min(len(judged), 100))
    worst = min(judged, key=lambda row: (row["p_value"], -row["score"], row["path"], row["face"]))
    assert worst["path"] in text.partition("</figure>")[0]
    assert "no proof" in text


def test_a_sheet_without_its_pictures(tiny_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    from lensborn.scan.sheet import sheet

    folder, out = tmp_path / "album", tmp_path / "results"
    save_pictures(folder, examples, 3)
    assert scan(folder, "--out", out, "--model", tiny_bundle.path).exit_code == 0
    (folder / "album-0" / "1.jpg").unlink()
    (out / "sheet.html").write_text(sheet(out / "faces.parquet", told(out)), "utf-8")
    assert "cannot be read any more" in check_sheet(out, 3, 2)
    assert scan(folder, "--out", out, "--model", tiny_bundle.path).exit_code == 0
    assert len(rows(out)) == 2 and not (out / "sheet.html").exists()  # it would show what the table has not


def test_a_sheet_of_a_disk_that_fails(
    tiny_bundle: Bundle, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk opens a picture, and does not give it."""
    from lensborn.scan.sheet import sheet

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    folder, out = tmp_path / "album", tmp_path / "results"
    save_pictures(folder, examples, 3)
    assert scan(folder, "--out", out, "--model", tiny_bundle.path).exit_code == 0
    opened = places.open_regular
    monkeypatch.setattr(
        places, "open_regular", lambda path: Failing() if path.endswith("1.jpg") else opened(path)
    )
    (out / "sheet.html").write_text(sheet(out / "faces.parquet", told(out)), "utf-8")
    assert "cannot be read any more" in check_sheet(out, 3, 2)


# --- the extra ----------------------------------------------------------------------------------------


def test_without_ray_the_remedy_is_named(tiny_bundle: Bundle, album: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['ray'] = None; {MAIN}"
    options = ["--out", tmp_path / "results", "--engine", "ray", "--model", tiny_bundle.path]
    command = [sys.executable, "-c", code, "scan", album, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'lensborn[ray]'" in done.stderr
    assert not (tmp_path / "results").exists()


def test_without_pyarrow_the_remedy_is_named(tiny_bundle: Bundle, album: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['pyarrow'] = None; {MAIN}"
    command = [sys.executable, "-c", code, "scan", album, "--out", tmp_path / "results"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'lensborn[scan]'" in " ".join(done.stderr.split())
