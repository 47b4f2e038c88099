"""`lensborn fit`: what is counted once, what is refused before pictures are read, disks and files that fail."""

import errno
import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import FIT, run, save_portraits

from lensborn import photo
from lensborn.bundle import read_bundle
from lensborn.cli.fit import GroupBy, Item, find_items
from lensborn.detector import Detector

CACHE = ".fitted.features.npz"


@pytest.fixture
def photos(examples: Path, tmp_path: Path) -> Path:
    """Forty portraits."""
    save_portraits(tmp_path / "photos", examples, 40)
    return tmp_path / "photos"


def fit(photos: Path, export: Path, *more: object) -> Any:
    """Fit to `photos`, to a bundle beside them."""
    return run("fit", photos, "--encoder", export, "--out", photos.parent / "fitted", *FIT, *more)


def words(text: str) -> str:
    """The text of an error without the frame that stands around it."""
    return " ".join(text.replace("│", " ").split())


def test_a_photograph_given_twice_counts_once(
    tiny_export: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, digest_of = photos.parent / "fitted", photo.digest_of
    assert fit(photos, tiny_export).exit_code == 0
    alone = read_bundle(fitted)
    (photos / "copies").mkdir()
    for number in range(10):
        shutil.copy(photos / f"{number}.jpg", photos / "copies")
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return digest_of(path)

    monkeypatch.setattr(photo, "digest_of", counted)
    again = fit(photos, tiny_export, photos / "copies", "--overwrite", "--group-by", "folder")
    assert again.exit_code == 2  # one group is on one side
    assert "40 files read, 0 unreadable, 40 faces" in again.stderr
    assert "20 more are copies of these" in again.stderr
    assert len(hashed) == len(set(hashed)) == 50
    (photos.parent / CACHE).unlink()
    again = fit(photos, tiny_export, photos / "copies", "--overwrite")
    assert again.exit_code == 0, again.output
    bundle = read_bundle(fitted)
    np.testing.assert_array_equal(np.sort(bundle.conformal.scores), np.sort(alone.conformal.scores))
    assert bundle.seen == alone.seen == {digest_of(photos / f"{number}.jpg")[:16] for number in range(40)}


def test_a_full_disk_is_told_with_the_remedy(tiny_export: Path, photos: Path) -> None:
    from test_scan import files_of_at_most

    with files_of_at_most(1_000):
        full = fit(photos, tiny_export)
    assert full.exit_code == 2
    assert "no space is left" in full.stderr
    assert [path.name for path in photos.parent.iterdir()] == ["photos"]


def test_what_was_read_outlasts_a_bundle_that_cannot_be_written(
    tiny_export: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Detector, "save", full)
        stopped = fit(photos, tiny_export)
    assert stopped.exit_code == 2
    assert "no space is left" in stopped.stderr
    continued = fit(photos, tiny_export)
    assert continued.exit_code == 0
    assert "continuing: 40 of 40 files are done" in continued.stderr


def test_a_photograph_removed_meanwhile_is_unreadable(
    tiny_export: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["lensborn.cli.fit"]
    item_crops = module.item_crops

    def removing(*arguments: Any) -> Iterator[Any]:
        for item, crops in item_crops(*arguments):
            if item.file.name in ("7.jpg", "9.jpg"):
                item.file.unlink()
            yield item, crops

    monkeypatch.setattr(module, "item_crops", removing)
    fitted = fit(photos, tiny_export)
    assert fitted.exit_code == 0, fitted.output
    assert "38 files read, 2 unreadable, 38 faces" in fitted.stderr
    assert "copies" not in fitted.stderr


def array() -> bytes:
    """A file of NumPy, but of one array."""
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no features", array()])
def test_a_damaged_cache_is_made_anew(tiny_export: Path, photos: Path, content: bytes) -> None:
    (photos.parent / CACHE).write_bytes(content)
    fitted = fit(photos, tiny_export)
    assert fitted.exit_code == 0, fitted.output
    assert "continuing" not in fitted.stderr


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        (("--shrinkage", 2), "--shrinkage"),
        (("--dims", 9), "--dims: the encoder gives 8 numbers a face: take no more axes"),
        (("--dims", 0), "--dims"),
        (("--components", 0), "--components"),
        (("typo/",), "does not exist"),
        (("x" * 300,), "does not exist"),
    ],
)
def test_wrong_usage_is_told_before_pictures_are_read(
    tiny_export: Path, photos: Path, option: tuple[object, ...], remedy: str
) -> None:
    refused = fit(photos, tiny_export, *option)
    assert refused.exit_code == 2
    assert remedy in words(refused.stderr)
    assert "files read" not in refused.stderr
    assert [path.name for path in photos.parent.iterdir()] == ["photos"]


def test_a_name_that_is_too_long_is_left_to_the_reader() -> None:
    """Who says what is wrong."""
    name = Path("x" * 300)
    assert list(find_items(name, GroupBy.PHOTO, None)) == [Item(name, None, is_crop=False)]
