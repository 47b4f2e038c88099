"""The command line's contract: lines, exit status, bad files, help, start-up, and a fit from photographs."""

import hashlib
import io
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import lensborn
from lensborn import report
from lensborn.bundle import KNOWN_KEY, Bundle, read_bundle
from lensborn.cli import app
from lensborn.contrast import Contrast
from lensborn.datasets.corpus import COLUMNS, split_of, write_table
from lensborn.density import Mixture

ROOT = Path(__file__).parent.parent
MAIN = "from lensborn.cli import main; main()"
VERBS = ("detect", "scan", "prepare", "pretrain", "fit", "evaluate", "info", "export", "manipulations")
CAMERA = {
    "make": str,
    "model": str,
    "f_number": float,
    "exposure_time_s": float,
    "focal_length_mm": float,
    "iso": float,
}


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def in_a_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=120, **options
    )


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def check_line(line: str) -> dict[str, Any]:
    """Hold one line against the contract of docs/cli.md."""
    value: dict[str, Any] = json.loads(line, parse_constant=refuse_constant)
    assert set(value) == {"path", "status", "error", "width", "height", "camera", "faces", "model"}
    assert isinstance(value["path"], str)
    assert value["status"] in {"ok", "no_face", "unreadable"}
    unreadable = value["status"] == "unreadable"
    assert isinstance(value["error"], str) and value["error"] if unreadable else value["error"] is None
    for side in ("width", "height"):
        assert value[side] is None if unreadable else isinstance(value[side], int)
    assert set(value["camera"]) == set(CAMERA)
    for key, kind in CAMERA.items():
        assert value["camera"][key] is None or isinstance(value["camera"][key], kind)
    assert (value["status"] == "ok") == bool(value["faces"])
    for face in value["faces"]:
        assert set(face) == {"box", "score", "p_value", "known_generator", "verdict", "reasons"}
        assert len(face["box"]) == 4 and min(face["box"][2:]) > 0
        assert math.isfinite(face["score"])
        assert 0 < face["p_value"] <= 1
        assert face["known_generator"] is None
        assert face["verdict"] in {"photographic", "ai_generated", "unsure"}
        assert face["reasons"] and all(isinstance(reason, str) and reason for reason in face["reasons"])
    assert set(value["model"]) == {"name", "sha256", "alpha"}
    return value


def detect(bundle: Bundle, *arguments: object) -> tuple[list[dict[str, Any]], int]:
    result = run("detect", "--json", "--model", bundle.path, *arguments)
    return [check_line(line) for line in result.stdout.splitlines()], result.exit_code


def test_every_line_holds_the_contract(tiny_bundle: Bundle, examples: Path) -> None:
    lines, status = detect(tiny_bundle, examples)
    assert status == 0
    assert [Path(line["path"]).name for line in lines] == sorted(path.name for path in examples.glob("*.jpg"))
    assert {line["model"]["sha256"] for line in lines} == {tiny_bundle.sha256}


def broken_files(folder: Path, whole: Path) -> list[Path]:
    """Files and a folder that are no pictures, each in its own way."""
    folder.mkdir()
    data = whole.read_bytes()
    (folder / "a-truncated.jpg").write_bytes(data[: len(data) // 2])
    (folder / "b-empty.jpg").write_bytes(b"")
    (folder / "c-text.jpg").write_text("not a picture\n" * 100)
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "PNG")
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = small.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + small.getvalue()[33:]
    (folder / "d-bomb.png").write_bytes(bomb)
    (folder / "e-folder.jpg").mkdir()
    (folder / "f-link.jpg").symlink_to("nowhere.jpg")
    return sorted(folder.iterdir())


def test_bad_files_never_stop_the_others(tiny_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    good = examples / "generated-man.jpg"
    bad = broken_files(tmp_path / "bad", good)
    mixed = [path for broken in bad for path in (broken, good)]
    lines, status = detect(tiny_bundle, *mixed, tmp_path / "missing.jpg")
    assert status == 1
    assert [line["path"] for line in lines] == [str(path) for path in [*mixed, tmp_path / "missing.jpg"]]
    assert [line["status"] for line in lines] == ["unreadable", "ok"] * len(bad) + ["unreadable"]
    ((alone,), _) = detect(tiny_bundle, good)
    assert all(line == alone for line in lines[1::2])
    lines, status = detect(tiny_bundle, tmp_path / "bad")
    assert (len(lines), {line["status"] for line in lines}, status) == (len(bad), {"unreadable"}, 1)


def test_absurd_exif_is_no_reason_to_stop(tiny_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "\x1b[2J\x00make"
    exif.get_ifd(0x8769).update({0x829D: (1, 0), 0x829A: (0, 0), 0x8827: 65535})
    with Image.open(examples / "generated-man.jpg") as image:
        image.save(tmp_path / "absurd.jpg", exif=exif)
    ((line,), status) = detect(tiny_bundle, tmp_path / "absurd.jpg")
    assert (line["status"], status) == ("ok", 0)
    assert line["camera"]["f_number"] is None
    table = run("detect", "--model", tiny_bundle.path, tmp_path / "absurd.jpg")
    assert table.exit_code == 0
    assert "\x1b" not in table.stdout


def test_a_picture_without_a_face(tiny_bundle: Bundle, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "grey").save(tmp_path / "plain.png")
    ((line,), status) = detect(tiny_bundle, tmp_path)
    assert (line["status"], line["width"], line["height"], line["faces"], status) == (
        "no_face",
        300,
        200,
        [],
        0,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--alpha", "0"],
        ["--alpha", "1"],
        ["--alpha", "nan"],
        ["--alpha", "high"],
        ["--model", "nowhere"],
        ["--nonsense"],
    ],
)
def test_wrong_usage_is_2(tiny_bundle: Bundle, examples: Path, arguments: list[str]) -> None:
    result = run("detect", "--model", tiny_bundle.path, examples, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_no_pictures_is_wrong_usage(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = run("detect", "--model", tiny_bundle.path, tmp_path)
    assert result.exit_code == 2
    assert "no pictures" in result.stderr


def test_an_alpha_that_can_flag_nothing_is_said(tiny_bundle: Bundle, examples: Path) -> None:
    result = run(
        "detect", "--model", tiny_bundle.path, "--alpha", "1e-6", "--json", examples / "generated-man.jpg"
    )
    assert result.exit_code == 0
    assert "nothing can be flagged" in result.stderr
    check_line(result.stdout)


def test_table_for_people(tiny_bundle: Bundle, examples: Path) -> None:
    result = run("detect", "--model", tiny_bundle.path, examples)
    assert result.exit_code == 0
    assert "X-T10 f/1.4 1/4000 s" in " ".join(result.stdout.split())
    assert "no proof" in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
def test_a_name_that_is_no_text(tiny_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    picture = tmp_path / os.fsdecode(b"caf\xe9 [red].jpg")
    picture.write_bytes((examples / "generated-man.jpg").read_bytes())
    done = in_a_process("-c", MAIN, "detect", "--json", "--model", tiny_bundle.path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert check_line(done.stdout)["path"].endswith("caf\\udce9 [red].jpg")
    done = in_a_process("-c", MAIN, "detect", "--model", tiny_bundle.path, tmp_path)
    assert done.returncode == 0, done.stderr


def test_names_that_the_output_cannot_encode(
    tiny_bundle: Bundle, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Windows writes to a file: a name is escaped, no verdict is lost."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    shutil.copy(examples / "generated-man.jpg", tmp_path / "é日本.jpg")
    command = ("-c", MAIN, "detect", "--model", tiny_bundle.path)
    done = in_a_process(*command, ".", cwd=tmp_path, encoding="latin-1")
    assert done.returncode == 0, done.stderr
    assert "é\\u65e5\\u672c.jpg" in done.stdout
    done = in_a_process(*command, "--json", ".", cwd=tmp_path, encoding="latin-1")
    assert done.returncode == 0, done.stderr
    assert check_line(done.stdout)["path"] == "é日本.jpg"
    done = in_a_process("-c", MAIN, "detect", "--model", "日本", ".", cwd=tmp_path, encoding="latin-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "\\u65e5\\u672c" in done.stderr and "Traceback" not in done.stderr


@given(
    st.dictionaries(
        st.text(st.characters()), st.text(st.characters()) | st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_a_json_line_is_one_line_of_valid_text(value: dict[str, Any]) -> None:
    line = report.json_line(value)
    assert line.isascii() and "\n" not in line
    json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8")  # no lone surrogates


def test_nan_is_never_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.json_line({"score": math.nan})


@given(st.text(st.characters()))
def test_printable_text_steers_no_terminal(text: str) -> None:
    assert report.printable(text).isprintable()


def test_detection_starts_without_heavy_modules(tiny_bundle: Bundle, examples: Path) -> None:
    """The whole run, so that nothing is imported late; memory in KiB.

    Its peak is that of the process's own memory: getrusage's also holds what the process that started it used.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    code = """
import re, sys
from pathlib import Path
from lensborn.cli import app
try:
    app(["detect", "--json", *sys.argv[1:]])
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"torch", "sklearn", "scipy", "pandas", "matplotlib", "pyarrow"} & set(sys.modules)
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(sorted(heavy), peak[1], file=sys.stderr)
"""
    done = in_a_process("-c", code, "--model", tiny_bundle.path, examples)
    assert done.returncode == 0, done.stderr
    heavy, memory = done.stderr.strip().splitlines()[-1].rsplit(" ", 1)
    assert heavy == "[]"
    assert int(memory) < 2**20


def test_help_is_light() -> None:
    code = "import sys, lensborn.cli; print(sorted({'cv2', 'openvino', 'numpy', 'torch'} & set(sys.modules)))"
    assert in_a_process("-c", code).stdout.strip() == "[]"


def test_a_closed_pipe_is_quiet(tiny_bundle: Bundle, examples: Path) -> None:
    code = f"""
import subprocess, sys
verb = [sys.executable, "-c", "{MAIN}", "detect", "--json", "--model", "{tiny_bundle.path}"]
with subprocess.Popen([*verb, *["{examples}"] * 5], stdout=subprocess.PIPE, text=True) as process:
    print(process.stdout.readline())
    process.stdout.close()
"""
    done = in_a_process("-c", code)
    check_line(done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"lensborn {verb}" in result.stdout
    assert "Example" in result.stdout


def test_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert (
        run("--version").stdout == f"lensborn {project['version']}\n" == f"lensborn {lensborn.__version__}\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("verb", ["detect --json generated-man.jpg", "info"])
def test_output_that_cannot_be_written_is_told(tiny_bundle: Bundle, examples: Path, verb: str) -> None:
    command = [sys.executable, "-c", MAIN, *verb.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=examples
        )
    assert done.returncode == 2
    assert done.stderr.startswith("lensborn: the output cannot be written")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_without_a_standard_output_nothing_is_judged(examples: Path) -> None:
    command = f"exec '{sys.executable}' -c '{MAIN}' detect --json generated-man.jpg >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False, cwd=examples)
    assert done.returncode == 2
    assert "no standard output" in done.stderr


@pytest.mark.parametrize(
    ("path", "word"),
    [("", "an empty path"), ("s3://bucket/a.jpg", "is an address"), ("https://a/b.jpg", "is an")],
)
def test_what_is_no_path_is_told(path: str, word: str) -> None:
    refused = run("detect", path)
    assert refused.exit_code == 2
    assert word in " ".join(refused.output.replace("│", " ").split())


def test_info_says_what_verdicts_are_calibrated_on(known_bundle: Bundle) -> None:
    verdict = json.loads(run("info", known_bundle.path, "--json").stdout)[KNOWN_KEY]["verdict"]
    head = known_bundle.known.head
    assert verdict["calibrated_on"] == head.memory.calibrated_on
    assert (verdict["margin"], verdict["smallest_p"]) == (head.margin, head.smallest_p)
    shown = " ".join(run("info", known_bundle.path).stdout.split())
    assert head.memory.calibrated_on.split(" (")[0] in shown
    assert "calibration of the first channel" in shown


def test_info(tiny_bundle: Bundle, tmp_path: Path) -> None:
    shown = run("info", tiny_bundle.path)
    assert shown.exit_code == 0
    for words in (tiny_bundle.sha256[:12], "CC0-1.0", "the examples", "by construction"):
        assert words in shown.stdout
    told = json.loads(run("info", tiny_bundle.path, "--json").stdout)
    assert told == {"sha256": tiny_bundle.sha256, **tiny_bundle.manifest}
    assert run("info", tmp_path).exit_code == 2


def test_info_prints_the_hash_of_the_file_whatever_the_file_says(tiny_bundle: Bundle, tmp_path: Path) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(tiny_bundle.path, forged)
    manifest = forged / "bundle.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sha256": tiny_bundle.sha256}))
    told = json.loads(run("info", forged, "--json").stdout)["sha256"]
    assert told == hashlib.sha256(manifest.read_bytes()).hexdigest() != tiny_bundle.sha256


def test_a_path_that_is_too_long_stops_no_other_file(tiny_bundle: Bundle, examples: Path) -> None:
    good = examples / "generated-man.jpg"
    result = run("detect", "--json", "--model", tiny_bundle.path, "x" * 300 + ".jpg", good)
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["unreadable", "ok"]
    assert result.exit_code == 1


def test_nothing_is_read_where_a_model_cannot_be_written(
    tiny_bundle: Bundle, tmp_path: Path, examples: Path
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "mine")
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    (tmp_path / "file").write_text("x")
    for out, words in (
        (tmp_path / "mine", ["notes.txt"]),
        (tmp_path / "file" / "below", ["you may write to"]),
        (tmp_path / ("x" * 120), ["100 printable"]),
    ):
        result = run("fit", examples, "--encoder", tiny_bundle.path, "--out", out, "--overwrite")
        assert result.exit_code == 2, result.output
        assert "reading faces" not in result.output
        for word in words:
            assert word in " ".join(result.output.split())


def test_manipulations_that_cannot_be_saved(examples: Path, tmp_path: Path) -> None:
    photo = examples / "portrait-fujifilm-x-t10.jpg"
    for out in (tmp_path / "sheet.xyz", tmp_path / "missing" / "sheet.png"):
        assert run("manipulations", photo, "--out", out).exit_code == 2


def save_portraits(folder: Path, examples: Path, number: int) -> None:
    """Variants of two portraits, so that a small model can be fitted."""
    rng = np.random.default_rng(number)
    folder.mkdir(parents=True)
    for index in range(number):
        with Image.open(examples / ("generated-man.jpg", "generated-woman.jpg")[index % 2]) as image:
            left, top = rng.integers(0, 60, 2)
            image.crop((left, top, left + 960, top + 960)).resize((320, 320)).save(folder / f"{index}.jpg")


FIT = ("--components", 1, "--alpha", 0.2, "--covariance", "diag")


def test_fit_from_photographs(tiny_export: Path, examples: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "fitted"
    save_portraits(photos, examples, 40)
    broken_files(photos / "bad", examples / "generated-man.jpg")
    fitted = run("fit", photos, "--encoder", tiny_export, "--out", out, *FIT, "--licence", "CC0-1.0")
    assert fitted.exit_code == 0, fitted.output
    assert "40 files read, 6 unreadable, 40 faces" in fitted.stderr
    assert "by construction" in fitted.stdout
    manifest = read_bundle(out).manifest
    assert (manifest["name"], manifest["licence"]) == ("fitted", "CC0-1.0")
    rows = {row["set"].split(" (")[0]: row["faces"] for row in manifest["measured"]}
    assert rows["fitted half"] + rows["calibration half"] == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fitted", "photos"]  # no cache is left
    lines, status = detect(read_bundle(out), examples)
    assert (len(lines), status) == (4, 0)
    assert run("fit", photos, "--encoder", out, "--out", out, *FIT).exit_code == 2  # it exists


def test_fit_takes_the_density_that_suits_the_encoder(
    tiny_export: Path, textured_export: Path, examples: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    save_portraits(photos, examples, 100)
    save_portraits(photos / "some", examples, 40)

    def fitted(export: Path, *options: object, of: Path = photos) -> Any:
        return run("fit", of, "--encoder", export, "--out", tmp_path / "out", "--overwrite", *options)

    for option in (("--components", 8), ("--seed", 0), ("--l2",)):
        refused = fitted(textured_export, *option)
        assert refused.exit_code == 2
        assert f"{option[0]}: a contrast has no such settings" in " ".join(refused.stderr.split())
    refused = fitted(tiny_export, "--density", "contrast")
    assert refused.exit_code == 2
    assert "fit a mixture" in " ".join(refused.stderr.split())
    found = fitted(textured_export)
    assert found.exit_code == 0, found.output
    assert isinstance(read_bundle(tmp_path / "out").density, Contrast)
    assert "n_textures" in run("info", tmp_path / "out").stdout
    assert fitted(textured_export, "--density", "mixture", *FIT, of=photos / "some").exit_code == 0
    assert isinstance(read_bundle(tmp_path / "out").density, Mixture)


def test_an_interrupted_fit_continues(tiny_export: Path, examples: Path, tmp_path: Path) -> None:
    """Too few photographs leave the features behind; with more, only the new files are read."""
    photos, out = tmp_path / "photos", tmp_path / "fitted"
    save_portraits(photos / "a", examples, 6)
    arguments = ("fit", photos, "--encoder", tiny_export, "--out", out, *FIT)
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "too few photographs" in " ".join(refused.stderr.split())
    assert not out.exists()
    save_portraits(photos / "b", examples, 34)
    continued = run(*arguments)
    assert continued.exit_code == 0, continued.output
    assert "continuing: 6 of 40 files are done" in continued.stderr
    continued_scores = read_bundle(out).conformal.scores
    assert run(*arguments, "--overwrite").exit_code == 0
    np.testing.assert_allclose(read_bundle(out).conformal.scores, continued_scores, rtol=1e-9)


def test_fit_from_a_corpus_keeps_sources_together(tiny_export: Path, examples: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "fitted"
    save_portraits(corpus / "photos", examples, 60)
    rows = [
        {"file": f"photos/{n}.jpg", "photo_sha1": f"{n}", "source": f"album {n // 3}", "size": "320"}
        | dict.fromkeys(("f_number", "exposure_time_s", "focal_length_mm", "iso"), "1")
        for n in range(60)
    ]
    write_table(corpus, rows, COLUMNS)
    fitted = run("fit", corpus, "--encoder", tiny_export, "--out", out, *FIT)
    assert fitted.exit_code == 0, fitted.output
    assert "60 faces of 80 px or more in 20 groups" in fitted.stderr
    again = ("fit", corpus, "--encoder", tiny_export, "--out", out, *FIT, "--overwrite", "--split")
    sources = sum(split_of(f"album {n}") == "train" for n in range(20))
    assert f"{3 * sources} faces of 80 px or more in {sources} groups" in run(*again, "train").stderr
    assert run(*again, "all").exit_code == 2
