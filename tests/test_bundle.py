import contextlib
import copy
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lensborn import bundle as module
from lensborn import report
from lensborn.bundle import Bundle, BundleError, read_bundle, write_bundle
from lensborn.calibration import Conformal
from lensborn.contrast import Contrast
from lensborn.density import fit_mixture
from lensborn.features import Preprocessing

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(200, 4))
MIXTURE = fit_mixture(FEATURES, n_components=2, n_dims=3)
CONFORMAL = Conformal.fit(MIXTURE.score(RNG.normal(size=(50, 4))))
ENCODER: dict[str, Path | bytes] = {"encoder.xml": b"<net/>", "encoder.bin": b"\x00\x01"}
MANIFEST: dict[str, Any] = {
    "name": "trial-1",
    "created": "2025-01-01",
    "licence": "Apache-2.0",
    "preprocessing": {
        "crop_scale": 1.3,
        "size": 224,
        "resample": "pillow-bicubic-antialias",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "encoder": {"backbone": "resnet50", "feature_dim": 4},
    "calibration": {"alpha": 0.05, "population": "portraits, Zürich"},
    "training": {"epochs": 3},
    "measured": [{"set": "held out", "auc": 0.5}],
    "versions": {"numpy": "2"},
}


def write(path: Path, **options: Any) -> Bundle:
    return write_bundle(
        path,
        **{
            "encoder_files": ENCODER,
            "density": MIXTURE,
            "conformal": CONFORMAL,
            "manifest": MANIFEST,
            "card": "# Trial\n",
            **options,
        },
    )


CONTRAST = Contrast.fit(FEATURES, 2)
TEXTURED = {**MANIFEST, "encoder": {**MANIFEST["encoder"], "texture_dim": 2}}


def write_contrast(path: Path, **options: Any) -> Bundle:
    return write(path, **{"density": CONTRAST, "manifest": TEXTURED, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def replace(folder: Path, name: str, data: bytes) -> None:
    """Change a file and its hash in bundle.json, as a forger would."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "bundle.json").read_bytes())
    manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "b").path


def test_what_was_written_is_read(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.name == "trial-1"
    assert bundle.encoder_xml.read_bytes() == b"<net/>"
    assert (bundle.density.score(FEATURES) == MIXTURE.score(FEATURES)).all()
    assert (bundle.conformal.scores == CONFORMAL.scores).all()
    assert bundle.sha256 == hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    assert (folder / "CARD.md").read_text() == "# Trial\n"
    assert bundle.manifest["encoder"]["files"] == ["encoder.bin", "encoder.xml"]
    assert bundle.manifest["calibration"] == {"alpha": 0.05, "population": "portraits, Zürich", "n": 50}
    assert bundle.manifest["density"] == MIXTURE.settings()
    assert {key: bundle.manifest[key] for key in ("training", "measured")} == {
        key: MANIFEST[key] for key in ("training", "measured")
    }


def test_a_contrast_that_was_written_is_read(tmp_path: Path) -> None:
    bundle = write_contrast(tmp_path / "b")
    assert isinstance(bundle.density, Contrast)
    assert (bundle.density.score(FEATURES) == CONTRAST.score(FEATURES)).all()
    assert bundle.manifest["density"] == CONTRAST.settings()
    assert bundle.manifest["encoder"]["texture_dim"] == 2


def test_a_mixture_tells_nothing_of_textures(folder: Path) -> None:
    """So that bundles of before there were any keep their hashes."""
    manifest = json.loads((folder / "bundle.json").read_text())
    assert "texture_dim" not in manifest["encoder"] and "kind" not in manifest["density"]
    manifest["density"]["kind"] = "mixture"
    (folder / "bundle.json").write_text(json.dumps(manifest))
    assert (read_bundle(folder).density.score(FEATURES) == MIXTURE.score(FEATURES)).all()


@pytest.mark.parametrize("kind", ["flow", None, 1, ["contrast"]])
def test_an_unknown_kind_of_density_names_the_remedy(folder: Path, kind: Any) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["density"]["kind"] = kind
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"density\.kind .* install a newer lensborn"):
        read_bundle(folder)


@pytest.mark.parametrize("textures", [-1, 4, 5, 1.0, True, None, "2", 3])
def test_textures_that_do_not_fit_are_refused(tmp_path: Path, textures: Any) -> None:
    manifest = {**MANIFEST, "encoder": {**MANIFEST["encoder"], "texture_dim": textures}}
    with pytest.raises(BundleError, match="texture"):
        write_contrast(tmp_path / "b", manifest=manifest)
    with pytest.raises(BundleError, match="as many textures"):
        write_contrast(tmp_path / "b", manifest=MANIFEST)


def test_every_other_file_is_pinned(folder: Path) -> None:
    assert set(read_bundle(folder).manifest["files"]) == set(contents(folder)) - {"bundle.json"}


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    assert contents(write(tmp_path / "a").path) == contents(write(tmp_path / "b").path)


def test_encoder_files_may_be_paths_and_the_manifest_that_of_another_bundle(folder: Path) -> None:
    old = read_bundle(folder)
    files = {name: folder / name for name in old.manifest["encoder"]["files"]}
    assert contents(write(folder.parent / "c", encoder_files=files, manifest=old.manifest).path) == contents(
        folder
    )


def test_unnamed_files_are_ignored(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    read_bundle(folder)


def test_a_bundle_is_overwritten_only_when_allowed(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(BundleError, match="choose another folder, or allow"):
        write(folder, card="new")
    assert contents(folder) == before
    write(folder, card="new", overwrite=True)
    assert (folder / "CARD.md").read_text() == "new"
    assert [file.name for file in folder.parent.iterdir()] == ["b"]


def test_what_is_no_bundle_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    for name in ("photos", "file"):
        with pytest.raises(BundleError, match="no bundle"):
            write(tmp_path / name, overwrite=True)
    assert (tmp_path / "photos" / "a.jpg").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"manifest": {**MANIFEST, "training": {"loss": float("nan")}}},
        {"manifest": {**MANIFEST, "training": {"path": Path("x")}}},
        {"manifest": {**MANIFEST, "name": ""}},
        {"manifest": {key: value for key, value in MANIFEST.items() if key != "licence"}},
        {"manifest": {**MANIFEST, "encoder": {"backbone": "resnet50", "feature_dim": 768}}},
        {"manifest": {**MANIFEST, "encoder": None}},
        {"encoder_files": {"encoder.bin": b""}},
        {"encoder_files": {**ENCODER, "../up.bin": b""}},
        {"encoder_files": {**ENCODER, "CARD.md": b""}},
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        write(tmp_path / "b", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_leaves_the_old_bundle(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(BundleError):
        write(folder, manifest={**MANIFEST, "encoder": {"backbone": "x", "feature_dim": 5}}, overwrite=True)
    assert contents(folder) == before
    assert [file.name for file in folder.parent.iterdir()] == ["b"]


def test_a_failed_rename_puts_the_old_bundle_back(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(OSError):
        module._put_in_place(folder.parent / "missing", folder)
    assert contents(folder) == before


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [1, 2])
def test_an_overwrite_that_is_interrupted_puts_the_old_bundle_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, done: bool
) -> None:
    """Ctrl-C before or after either rename."""
    before, renames, rename = contents(folder), [], Path.rename

    def interrupted(path: Path, to: Path) -> None:
        renames.append(path)
        if done or len(renames) != step:
            rename(path, to)
        if len(renames) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(folder, card="new", overwrite=True)
    assert contents(folder) == before
    assert [file.name for file in folder.parent.iterdir()] == ["b"]


def test_a_new_bundle_is_on_the_disk_before_the_old_one_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    sync, rename, remove = os.fsync, Path.rename, shutil.rmtree

    def synced(descriptor: int) -> None:
        told.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    def renamed(path: Path, to: Path) -> None:
        told.append("rename")
        rename(path, to)

    def removed(path: Path, ignore_errors: bool) -> None:
        told.append("remove")
        remove(path, ignore_errors)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    write(folder, card="new", overwrite=True)
    new = {path.stat().st_ino for path in [folder, *folder.iterdir()]}
    assert set(told[: len(new)]) == new
    assert told[len(new) :] == ["rename", "rename", folder.parent.stat().st_ino, "remove", "remove"]


@pytest.mark.parametrize(
    ("code", "refused"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)]
)
def test_a_disk_that_cannot_sync_folders_holds_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, refused: bool
) -> None:
    """Some filesystems have no such call for folders."""

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError) if refused else contextlib.nullcontext():
        write(tmp_path / "b")
    assert (tmp_path / "b").exists() != refused


@pytest.mark.parametrize("name", ["encoder.xml", "encoder.bin", "density.safetensors", "CARD.md"])
def test_a_changed_or_missing_file_is_noticed(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=rf"{re.escape(name)} is not the file.*get an untouched copy"):
        read_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"no file {re.escape(name)}"):
        read_bundle(folder)


def set_name(manifest: dict[str, Any], name: str) -> None:
    manifest["files"][name] = "0" * 64


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "C:x", "x\x00", "x\n", ".hidden", "é", "a" * 101],
)
def test_names_are_confined_to_the_folder(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    set_name(manifest, name)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="plain names, without folders"):
        read_bundle(folder)


def test_links_out_of_the_folder_are_refused(folder: Path) -> None:
    for name in ("CARD.md", "bundle.json"):
        outside = folder.parent / "outside"
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)
        with pytest.raises(BundleError, match=f"{name} is a link that leads out"):
            read_bundle(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(name)  # a circle
        with pytest.raises(BundleError, match="cannot be read"):
            read_bundle(folder)
        (folder / name).unlink()
        shutil.move(outside, folder / name)
    read_bundle(folder)


def test_pipes_folders_and_oversized_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "CARD.md").unlink()
    os.mkfifo(folder / "CARD.md")
    with pytest.raises(BundleError, match="not a plain file"):
        read_bundle(folder)
    (folder / "CARD.md").unlink()
    (folder / "CARD.md").mkdir()
    with pytest.raises(BundleError, match="not a plain file"):
        read_bundle(folder)
    (folder / "CARD.md").rmdir()
    (folder / "CARD.md").write_bytes(bytes(2**21))
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(BundleError, match="larger than 1 MiB"):
        read_bundle(folder)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"x")])
def test_what_is_no_bundle_is_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "x")
    with pytest.raises(BundleError, match="give the folder"):
        read_bundle(tmp_path / "x")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe\xff",
        b"[]",
        b"null",
        b"{",
        b"[" * 200_000,
        b'{"format": NaN}',
        b'{"format": 1e999}',
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"name": "\\ud800"}',
        b" " * (2**20 + 1),
    ],
)
def test_text_that_is_no_manifest_is_refused(folder: Path, text: bytes) -> None:
    (folder / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match="get an untouched copy"):
        read_bundle(folder)


def test_a_card_that_is_no_text_is_refused(folder: Path) -> None:
    replace(folder, "CARD.md", "# Modèle\n".encode("latin-1"))
    with pytest.raises(BundleError, match=r"CARD\.md is not UTF-8.*get an untouched copy"):
        read_bundle(folder)


def test_what_is_read_is_not_too_deep_to_be_printed(tmp_path: Path) -> None:
    value: dict[str, Any] = {}
    for _ in range(module.MAX_DEPTH - 2):  # bundle.json itself is one, its `training` another
        value = {"a": value}
    bundle = write(tmp_path / "b", manifest={**MANIFEST, "training": value})
    assert json.loads(report.json_line(bundle.manifest)) == bundle.manifest
    for deep in ({"a": value}, {"a": [value]}):
        with pytest.raises(BundleError, match=r"64 deep\): get an untouched copy"):
            write(tmp_path / "c", manifest={**MANIFEST, "training": deep})
        manifest = {**bundle.manifest, "training": deep}
        (bundle.path / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=r"64 deep\): get an untouched copy"):
            read_bundle(bundle.path)


@pytest.mark.parametrize(
    ("scale", "size", "fits"),
    [
        (1, 16, True),
        (8, 2048, True),
        (0.99, 16, False),
        (8.01, 224, False),
        (1.3, 15, False),
        (1.3, 2049, False),
    ],
)
def test_a_bundle_is_written_where_a_detector_takes_its_preprocessing(
    tmp_path: Path, scale: float, size: int, fits: bool
) -> None:
    preprocessing = {**MANIFEST["preprocessing"], "crop_scale": scale, "size": size}
    taken = contextlib.nullcontext() if fits else pytest.raises(BundleError, match="preprocessing")
    with taken:
        write(tmp_path / "b", manifest={**MANIFEST, "preprocessing": preprocessing})
    with taken:
        Preprocessing.from_json(preprocessing)


def test_another_format_names_the_remedy(folder: Path) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(BundleError, match="install a newer lensborn"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("calibration.safetensors", {"scores": np.full(50, np.nan)}),
        ("calibration.safetensors", {"scores": np.arange(50)[::-1].astype(float)}),
        ("calibration.safetensors", {"scores": np.arange(49.0)}),
        ("calibration.safetensors", {"scores": np.arange(50)}),
        ("calibration.safetensors", {"other": np.arange(50.0)}),
        ("density.safetensors", {}),
        ("density.safetensors", {**MIXTURE.to_arrays(), "means": np.full((2, 3), np.nan)}),
        ("density.safetensors", {**MIXTURE.to_arrays(), "means": np.zeros((3, 3))}),
        ("density.safetensors", {**MIXTURE.to_arrays(), "offset": np.zeros(5)}),
        ("density.safetensors", {**MIXTURE.to_arrays(), "extra": np.zeros(5)}),
    ],
)
def test_arrays_that_do_not_fit_are_refused(folder: Path, name: str, arrays: dict[str, Any]) -> None:
    replace(folder, name, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
    with pytest.raises(BundleError, match=re.escape(name)):
        read_bundle(folder)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(["../x", "encoder.xml", "0" * 64, -1, 0, 1.5, 10**400, float("inf")]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=4,
)
PLAIN = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [found for key, item in inner for found in paths_of(item, (*path, key))]


@pytest.fixture(scope="module", params=[write, write_contrast], ids=["mixture", "contrast"])
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, bytes]]:
    path = request.param(tmp_path_factory.mktemp("whole") / "b").path
    return path, contents(path)


def read_or_refuse(path: Path, files: dict[str, bytes]) -> None:
    """Read a changed bundle: it is whole, or BundleError; anything else fails the test. Then restore it."""
    try:
        loaded = read_bundle(path)
        assert np.isfinite(loaded.density.score(FEATURES)).all()
    except BundleError as error:
        assert str(error)
    finally:
        for name, data in files.items():
            (path / name).write_bytes(data)


@PLAIN
@given(st.data())
def test_changed_manifests_raise_only_bundle_error(
    whole: tuple[Path, dict[str, bytes]], data: st.DataObject
) -> None:
    path, files = whole
    manifest = copy.deepcopy(json.loads(files["bundle.json"]))
    for way in data.draw(st.lists(st.sampled_from(paths_of(manifest)), min_size=1, max_size=3)):
        place = manifest
        try:
            for key in way[:-1]:
                place = place[key]
            if data.draw(st.booleans()):
                place[way[-1]] = data.draw(VALUES)
            else:
                del place[way[-1]]
        except (KeyError, IndexError, TypeError):  # an earlier change took this place away
            continue
    (path / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    read_or_refuse(path, files)


@PLAIN
@given(
    st.sampled_from(["bundle.json", "density.safetensors", "calibration.safetensors"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_changed_bytes_raise_only_bundle_error(
    whole: tuple[Path, dict[str, bytes]], name: str, changes: list[tuple[float, int]], cut: float
) -> None:
    """Single bytes changed and the end cut off, with the hash made right, so that the parsers see it."""
    path, files = whole
    data = bytearray(files[name])
    for place, value in changes:
        data[int(place * min(len(data), 600))] = value  # the head of a file is where its structure is
    if cut < 0.2:
        del data[int(cut * 5 * len(data)) :]
    if name == "bundle.json":
        (path / name).write_bytes(data)
    else:
        replace(path, name, bytes(data))
    read_or_refuse(path, files)


def test_what_a_model_has_seen_travels_with_it(tmp_path: Path) -> None:
    marks = ["00ff00ff00ff00ff", "0123456789abcdef"]
    bundle = write(tmp_path / "one", seen=[*marks, *marks, ""])
    assert read_bundle(bundle.path).seen == set(marks)
    assert (bundle.path / "seen.txt").read_text().split() == marks
    assert write(tmp_path / "none").seen == frozenset()
    assert not (tmp_path / "none" / "seen.txt").exists()
    with pytest.raises(BundleError, match=r"seen\.txt"):
        write(tmp_path / "bad", seen=["not a hash"])


def test_a_bundle_that_does_not_pin_its_weights_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "bundle.json").read_text())
    del manifest["files"]["encoder.bin"]
    manifest["encoder"]["files"] = ["encoder.xml"]
    (tmp_path / "m" / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"must name encoder.xml and encoder.bin"):
        read_bundle(tmp_path / "m")


def test_a_bundle_is_not_overwritten_with_what_lies_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "m")
    notes = tmp_path / "m" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(BundleError, match=r"notes.txt"):
        write(tmp_path / "m", overwrite=True)
    assert notes.read_text() == "mine"
    notes.unlink()
    write(tmp_path / "m", overwrite=True)


def test_a_bundle_with_another_companion_can_be_overwritten(tmp_path: Path) -> None:
    encoder = {**ENCODER, "notes.md": b"of the encoder"}
    write(tmp_path / "m", encoder_files=encoder)
    assert "notes.md" not in contents(write(tmp_path / "m", overwrite=True).path)


def test_a_path_too_long_is_no_bundle() -> None:
    with pytest.raises(BundleError, match="not a folder"):
        read_bundle("x" * 300)
