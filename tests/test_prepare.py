"""A folder of photographs becomes a corpus that training can read, and an interrupted run goes on."""

import errno
import hashlib
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lensborn.cli import app
from lensborn.datasets.corpus import LANDMARKS, TABLE, CorpusError, Crop, read_corpus, read_table
from lensborn.faces import FaceFinder, crop_face, crop_square
from lensborn.photo import read_photo
from lensborn.prepare import MAX_SIDE, Outcome, list_photos, prepare

EXAMPLES = Path(__file__).parent.parent / "examples"
PORTRAIT = EXAMPLES / "portrait-fujifilm-x-t10.jpg"
UNTAGGED = EXAMPLES / "generated-man.jpg"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An album with a photograph, one without EXIF and a broken one; beside it a loose photograph."""
    folder = tmp_path / "photos"
    (folder / "album" / "deep").mkdir(parents=True)
    shutil.copy(PORTRAIT, folder / "album" / "deep" / "one.jpg")
    shutil.copy(UNTAGGED, folder / "album" / "untagged.jpg")
    (folder / "album" / "broken.jpg").write_bytes(PORTRAIT.read_bytes()[:20_000])
    with Image.open(PORTRAIT) as image:  # another file, with the same EXIF
        image.resize((500, 500)).save(folder / "loose.png", exif=image.getexif())
        Image.new("RGB", (300, 300), "grey").save(folder / "empty-scene.jpg", exif=image.info["exif"])
        image.resize((90, 90)).save(folder / "tiny.jpg", exif=image.info["exif"])
    return folder


def run(photos: Path, out: Path, *, keep_untagged: bool = False) -> list[Outcome]:
    outcomes: list[Outcome] = []
    prepare(list_photos([photos], out), out, keep_untagged=keep_untagged, report=outcomes.append)
    return outcomes


def by_source(out: Path) -> dict[str, Crop]:
    return {crop.source: crop for crop in read_corpus(out)}


def test_photographs_become_a_corpus(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    outcomes = {outcome.path.name: outcome for outcome in run(photos, out)}
    assert outcomes["untagged.jpg"].kept_out == "without camera tags"
    assert outcomes["broken.jpg"].kept_out == "unreadable"
    assert "damaged" in str(outcomes["broken.jpg"].error)
    assert outcomes["empty-scene.jpg"].kept_out == "without a face"
    assert outcomes["tiny.jpg"].kept_out == "faces too small"
    assert outcomes["one.jpg"].crops == outcomes["loose.png"].crops == 1

    crops = read_corpus(out)
    assert len(crops) == 2
    album = by_source(out)["album"]
    assert {crop.source for crop in crops} == {"album", next(c.photo for c in crops if c.source != "album")}
    np.testing.assert_allclose(album.tags, [1.4, 1 / 4000, 35.0, 6400.0])
    assert (album.row["make"], album.row["model"], album.row["flash"]) == ("FUJIFILM", "X-T10", "16")
    assert (album.row["photo_width"], album.row["faces_in_photo"]) == ("800", "1")
    assert 60 <= int(album.row["detector_score"]) <= 100


def test_a_crop_is_the_one_crop_never_enlarged_without_exif(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "corpus")
    for crop in read_corpus(tmp_path / "corpus"):
        whole = read_photo(PORTRAIT if crop.source == "album" else photos / "loose.png")
        (face,) = FaceFinder().find(whole.pixels)
        x0, y0, side = crop_square(face.box, whole.width, whole.height)
        assert crop.size == min(int(side), MAX_SIDE)
        assert crop.row["crop_px_in_photo"] == str(round(side))
        with Image.open(crop.file) as image:
            assert image.size == (crop.size, crop.size)
            assert not image.getexif()
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]  # 4:4:4
            saved = np.asarray(image).astype(int)
        difference = saved - crop_face(whole.pixels, face.box, crop.size)
        assert np.abs(difference).mean() < 3
        assert crop.landmarks is not None
        in_photo = crop.landmarks * side / crop.size + (x0, y0)
        np.testing.assert_allclose(in_photo, face.landmarks, atol=0.02 * side / crop.size)


def test_photographs_without_tags_are_kept_on_demand(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(photos, out)
    run(photos, out, keep_untagged=True)
    crops = read_corpus(out)
    assert len(crops) == 3
    assert sum(math.isnan(crop.tags[0]) for crop in crops) == 1


def test_what_is_done_is_not_done_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(photos, out)
    table = (out / TABLE).read_bytes()
    times = {crop.file: crop.file.stat().st_mtime_ns for crop in read_corpus(out)}
    shutil.copy(PORTRAIT, photos / "copy-of-one.jpg")  # the same bytes under another name
    again = {outcome.path.name: outcome.kept_out for outcome in run(photos, out)}
    assert again["one.jpg"] == again["loose.png"] == again["copy-of-one.jpg"] == "in the corpus already"
    assert (out / TABLE).read_bytes() == table
    assert {crop.file: crop.file.stat().st_mtime_ns for crop in read_corpus(out)} == times


def test_an_interrupted_run_goes_on(photos: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "corpus", tmp_path / "whole"

    def interrupt(outcome: Outcome) -> None:
        if outcome.crops:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(list_photos([photos], out), out, report=interrupt)
    (first,) = read_corpus(out)
    assert first.file.is_file()
    run(photos, out)
    run(photos, whole)
    assert sorted(map(str, read_table(out))) == sorted(map(str, read_table(whole)))
    assert {path.name for path in out.rglob(".*")} == {".lock"}  # nothing is left aside


def test_columns_of_an_older_table_are_kept(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    run(photos / "album", out)
    path = out / TABLE
    head, row = path.read_text().splitlines()
    path.write_text(f"{head},licence\n{row},CC0\n")
    run(photos, out)
    assert [crop.row["licence"] for crop in read_corpus(out)] == ["CC0", ""]


def test_a_table_that_cannot_be_read_is_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / TABLE).write_text("mine\n")
    with pytest.raises(CorpusError, match="lacks"):
        prepare(list_photos([photos], tmp_path), tmp_path)
    assert (tmp_path / TABLE).read_text() == "mine\n"


def test_the_corpus_is_not_prepared_again(photos: Path) -> None:
    out = photos / "corpus"
    before = list_photos([photos], out)
    run(photos, out)
    assert list_photos([photos], out) == before
    assert dict(before)[photos / "album" / "deep" / "one.jpg"] == "album"
    assert dict(before)[photos / "loose.png"] is None


def test_the_verb_sums_up(photos: Path, tmp_path: Path) -> None:
    def invoke(*arguments: Path | str) -> Any:
        return CliRunner().invoke(app, ["prepare", *map(str, arguments)])

    result = invoke(photos, "--out", tmp_path / "corpus")
    assert result.exit_code == 1  # one file could not be read
    summary = dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines() if line.strip())
    summary = {key.strip(): value for key, value in summary.items()}
    assert summary["photographs found"] == "6"
    assert summary["kept out, unreadable"] == summary["kept out, without camera tags"] == "1"
    assert summary["face crops added"] == "2"
    assert "broken.jpg: the JPEG picture is truncated" in result.stderr.replace("\n", "")
    (photos / "album" / "broken.jpg").unlink()
    assert invoke(photos, "--out", tmp_path / "corpus").exit_code == 0
    assert invoke(photos / "none", "--out", tmp_path).exit_code == 2
    (tmp_path / "bare").mkdir()
    assert invoke(tmp_path / "bare", "--out", tmp_path / "x").exit_code == 2
    assert set(LANDMARKS) <= set(read_table(tmp_path / "corpus")[0])


def test_a_second_run_into_one_corpus_is_refused(photos: Path, tmp_path: Path) -> None:
    """Each would write a table without the rows of the other."""
    out = tmp_path / "corpus"
    told: list[Any] = []

    def second(_: Outcome) -> None:
        told.append(CliRunner().invoke(app, ["prepare", str(photos), "--out", str(out)]))

    prepare(list_photos([photos / "album"], out), out, report=second)
    assert [result.exit_code for result in told] == [2, 2, 2]
    assert "another `lensborn prepare` writes to" in told[0].stderr
    (row,) = read_table(out)
    run(photos, out)
    assert row in read_table(out) and len(read_table(out)) == 2


@pytest.mark.parametrize(
    ("owner", "call", "error", "words"),
    [
        (hashlib, "file_digest", OSError(errno.EIO, "Input/output error"), "check the disk"),
        (FaceFinder, "find", MemoryError(), "not enough memory"),
        (FaceFinder, "find", RuntimeError(), "unexpected RuntimeError"),
    ],
)
def test_a_file_that_fails_stops_no_other(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    call: str,
    error: Exception,
    words: str,
) -> None:
    whole, calls = getattr(owner, call), []

    def failing_once(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return whole(*arguments)

    (photos / "album" / "broken.jpg").unlink()
    monkeypatch.setattr(owner, call, failing_once)
    outcomes = {outcome.path.name: outcome for outcome in run(photos, tmp_path / "corpus")}
    assert outcomes["one.jpg"].kept_out == "unreadable"
    assert words in str(outcomes["one.jpg"].error)
    assert outcomes["loose.png"].crops == len(read_corpus(tmp_path / "corpus")) == 1


def test_a_disk_that_refuses_is_told_with_the_remedy(photos: Path, tmp_path: Path) -> None:
    from test_scan import files_of_at_most

    def invoke(out: Path) -> Any:
        return CliRunner().invoke(app, ["prepare", str(photos), "--out", str(out)])

    with files_of_at_most(2_000):  # the table fits, a crop does not
        full = invoke(tmp_path / "corpus")
    assert full.exit_code == 2
    assert "no space is left" in full.stderr
    assert read_table(tmp_path / "corpus") == []
    assert not list((tmp_path / "corpus" / "photos").iterdir())
    assert invoke(tmp_path / "corpus").exit_code == 1  # goes on; one file cannot be read
    assert len(read_corpus(tmp_path / "corpus")) == 2
    (tmp_path / "file").touch()
    assert invoke(tmp_path / "file" / "below").exit_code == 2


@pytest.mark.skipif(os.name == "nt", reason="folders are not synced there")
def test_crops_are_on_the_disk_before_the_table(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    out = tmp_path / "corpus"
    run(photos, out)
    crops = [crop.file.stat().st_ino for crop in read_corpus(out)]
    folder, table = (out / "photos").stat().st_ino, (out / TABLE).stat().st_ino
    assert len(crops) == 2
    assert max(map(synced.index, crops)) < synced.index(folder) < synced.index(table)
