import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import openvino.opset13 as ops
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from lensborn.bench import protocols, tables
from lensborn.bench.protocols import Container, Measured, Result
from lensborn.cli.evaluate import evaluate
from lensborn.datasets import pictures as picture_sets
from lensborn.datasets.pictures import Picture, PictureSetError
from lensborn.detector import Detector
from lensborn.faces import FaceFinder, crop_face
from lensborn.features import EncoderExport, Preprocessing
from lensborn.photo import read_photo

PORTRAIT = Path(__file__).parent.parent / "examples" / "portrait-fujifilm-x-t10.jpg"
SIZE = 64  # of the small encoder's input


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A real bundle around a small graph: mean and roughness of each channel."""
    folder = tmp_path_factory.mktemp("model")
    pixels = ops.parameter([-1, 3, SIZE, SIZE], np.float32)
    axes = ops.constant(np.array([2, 3]))
    mean = ops.reduce_mean(pixels, axes)
    square = ops.reduce_mean(ops.multiply(pixels, pixels), axes)
    feature = ops.concat([mean, ops.sqrt(ops.subtract(square, ops.multiply(mean, mean)))], 1)
    graph = openvino.Model([feature], [pixels])
    openvino.save_model(graph, folder / "encoder.xml", compress_to_fp16=False)
    export = EncoderExport(folder / "encoder.xml", Preprocessing(size=SIZE), "statistics", 6, {})
    features = np.random.default_rng(0).normal(100, 30, size=(400, 6)).astype(np.float32)
    groups = [str(n) for n in range(400)]
    detector = Detector.fit(features, groups, export, name="small", population="noise", n_components=1)
    return detector.save(folder / "bundle").path


@pytest.fixture(scope="module")
def detector(bundle):
    return Detector.load(bundle)


def portrait(folder, name, width=480, **options):
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(PORTRAIT) as image:
        picture = image.convert("RGB")
    picture.resize((width, width * picture.height // picture.width)).save(folder / name, **options)
    return folder / name


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """One picture of each outcome."""
    folder = tmp_path_factory.mktemp("odd")
    Image.new("RGB", (300, 300), "grey").save(folder / "empty.png")
    (folder / "text.jpg").write_text("no picture")
    files = [folder / "empty.png", folder / "text.jpg"]
    return [portrait(folder, "a.jpg"), *files, portrait(folder, "small.png", 160)]


def test_published_is_the_largest_face_and_gives_reasons(detector, odd):
    measured = list(protocols.published(detector, odd))
    assert [m.reason for m in measured] == [None, "no_face", "unreadable", None]
    face = detector.detect(odd[0]).faces[0]
    assert (measured[0].score, measured[0].p_value) == (face.score, face.p_value)
    with Image.open(odd[0]) as image:
        expected = (*image.size, odd[0].stat().st_size, "JPEG")
    container = measured[0].container
    assert (container.width, container.height, container.size, container.format) == expected
    assert container.quantisation > 0
    assert measured[3].container.quantisation == 0


def test_equalised_follows_its_recipe_and_gives_reasons(detector, odd):
    measured = list(protocols.equalised(detector, odd))
    assert [m.reason for m in measured] == [None, "no_face", "unreadable", "too_small"]
    pixels = read_photo(odd[0]).pixels
    crop = crop_face(pixels, FaceFinder().find(pixels)[0].box, 192)
    stream = io.BytesIO()
    Image.fromarray(crop).save(stream, "JPEG", quality=95, subsampling=0)
    with Image.open(stream) as image:
        small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    score = detector.score(small[None])
    assert measured[0].score == score[0]
    assert measured[0].p_value == detector.conformal.p_values(score)[0]
    assert (measured[0].container.width, measured[0].container.format) == (192, "JPEG")
    with Image.open(stream) as image:
        assert all(layer[1:3] == (1, 1) for layer in image.layer)  # 4:4:4


def containers(rng, n, **fixed):
    numbers = zip(rng.integers(200, 900, n).tolist(), rng.integers(10_000, 90_000, n).tolist(), strict=True)
    return [replace(Container(width, 300, size, "JPEG", 6.0), **fixed) for width, size in numbers]


def test_audit_sees_the_container_and_nothing_else():
    rng = np.random.default_rng(0)
    real = containers(rng, 200)
    assert tables.audit(real, containers(rng, 60, format="PNG", quantisation=0.0)) > 0.99
    assert tables.audit(real, containers(rng, 60, quantisation=6.5)) > 0.99
    assert abs(tables.audit(real, containers(rng, 200)) - 0.5) < 0.1
    between = containers(rng, 100, width=300)  # a size between two others
    assert tables.audit(containers(rng, 100, width=256) + containers(rng, 100, width=512), between) > 0.99
    same = [Container(192, 192, 9000, "JPEG", 2.0)] * 30  # equalised, and even the bytes agree
    assert tables.audit(same, same) == 0.5
    assert tables.audit(real, containers(rng, tables.AUDIT_MINIMUM - 1)) is None


def results(label, name, scores, sources=None):
    return [
        Result(
            Picture(Path("x"), f"{name}/{i}", name, label, sources[i] if sources else ""),
            Measured(float(s), 0.01 if s > 2 else 0.5, None, Container(256, 256, 9000 + i, "JPEG", 2.0)),
            "",
        )
        for i, s in enumerate(scores)
    ]


def lost(label, name, reason):
    return Result(Picture(Path("x"), f"{name}/{reason}", name, label, ""), Measured(reason=reason), "")


def test_tables_of_known_scores():
    data = [
        *results("real", "a", [0, 1, 2, 3]),
        lost("real", "a", "no_face"),
        *results("real", "b", [0, 0, 0, 0]),
        *results("fake", "good", [4, 5]),
        *results("fake", "bad", [-1, 3]),
        lost("fake", "bad", "unreadable"),
        lost("fake", "none", "too_small"),
    ]
    evaluation = tables.evaluate(data, 0.05, 0, {"model": {"alpha": 0.05}})
    rows = {(row["generated"], row["real"]): row for row in evaluation.generators}
    assert len(rows) == 9
    assert rows["good", "a"]["auc"] == rows["good", tables.ALL]["auc"] == 1
    assert rows["bad", "a"]["auc"] == pytest.approx(3.5 / 8)
    assert rows["bad", "a"]["unreadable"] == 1
    assert rows["bad", "a"]["accuracy"] == pytest.approx(4 / 6)
    assert rows["bad", "a"]["balanced_accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert rows["bad", tables.ALL]["flagged"] == 0.5
    assert rows["none", "a"]["auc"] is None
    assert rows["none", "a"]["too_small"] == 1
    photographs = {row["real"]: row for row in evaluation.photographs}
    assert photographs["a"] | {"low": 0, "high": 0} == {
        "real": "a", "n": 4, "no_face": 1, "unreadable": 0, "too_small": 0,
        "flagged": 1, "false_alarms": 0.25, "low": 0, "high": 0,
    }  # fmt: skip
    assert (photographs["a"]["low"], photographs["a"]["high"]) == pytest.approx((0.00631, 0.80588), abs=1e-5)
    assert photographs[tables.ALL]["n"] == 8
    assert evaluation.summary["generators"] == 2
    assert evaluation.summary["auc"] == pytest.approx((1 + 7.5 / 16) / 2)
    assert (evaluation.summary["worst"], evaluation.summary["worst_auc"]) == ("bad", pytest.approx(7.5 / 16))


def test_a_row_that_format_explains_is_marked():
    real, fake = results("real", "r", range(20)), results("fake", "f", range(20))
    png = [replace(r, measured=replace(r.measured, container=Container(9, 9, 9, "PNG", 0.0))) for r in fake]
    evaluation = tables.evaluate([*real, *png], 0.05, 0, {})
    assert all(row["marked"] and row["audit"] > 0.99 for row in evaluation.generators)
    assert "(!)" in tables.generator_cells(evaluation.generators[0])[-1]
    alike = [
        replace(r, measured=replace(r.measured, container=real[0].measured.container)) for r in real + fake
    ]
    evaluation = tables.evaluate(alike, 0.05, 0, {})
    assert not any(row["marked"] for row in evaluation.generators)


def test_sources_widen_the_interval():
    rng = np.random.default_rng(0)
    source = np.repeat(np.arange(20), 10)
    scores = rng.normal(size=20)[source] + 0.1 * rng.normal(size=200)
    fake = results("fake", "f", rng.normal(1, 1, size=100))

    def width(sources):
        row = tables.evaluate([*results("real", "r", scores, sources), *fake], 0.05, 0, {}).generators[0]
        return row["auc_high"] - row["auc_low"]

    assert width([str(s) for s in source]) > 1.5 * width(None)


def pictures(label, name, n):
    return [Picture(Path(f"{i}"), f"{name}/{i}", name, label, "") for i in range(n)]


def test_limit_is_a_stable_choice_from_each_set():
    everything = pictures("real", "r", 50) + pictures("fake", "f", 5)
    chosen = picture_sets.choose(everything, 10, 0)
    assert [p.set for p in chosen] == ["r"] * 10 + ["f"] * 5
    assert picture_sets.choose(everything, 10, 0) == chosen != picture_sets.choose(everything, 10, 1)
    assert set(chosen) < set(picture_sets.choose(everything, 20, 0))  # a larger limit keeps them
    assert picture_sets.choose(everything, None, 0) == everything


@pytest.mark.parametrize(
    ("sets", "word"),
    [
        (pictures("real", "r", 2), "no fake"),
        (pictures("fake", "r", 2), "no real"),
        (pictures("fake", "r", 2) + pictures("real", "r", 2), "different names"),
        (pictures("fake", "f", 2) * 2 + pictures("real", "r", 2), "twice"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(sets, word):
    with pytest.raises(PictureSetError, match=word):
        picture_sets.choose(sets, None, 0)


def test_a_table_gives_sets_and_sources(tmp_path):
    table = tmp_path / "faces.csv"
    table.write_text("file,label,set,source\na/1.jpg,real,r,s1\nb/2.jpg,fake,f,\n")
    assert picture_sets.pictures_of_table(table) == [
        Picture(tmp_path / "a/1.jpg", "a/1.jpg", "r", "real", "s1"),
        Picture(tmp_path / "b/2.jpg", "b/2.jpg", "f", "fake", ""),
    ]


@pytest.mark.parametrize("row", ["a.jpg,maybe,s", "a.jpg,real", ",real,s", "/etc/a.jpg,real,s", "", '"'])
def test_a_bad_table_names_the_record(tmp_path, row):
    table = tmp_path / "faces.csv"
    table.write_text("file,label,set\n" + row + "\n")
    with pytest.raises(PictureSetError, match=r"record 2|no rows"):
        picture_sets.pictures_of_table(table)


@given(st.binary(max_size=300) | st.text('ab,\n"\rrealfkst=/', max_size=300).map(lambda t: t.encode()))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, content):
    table = tmp_path_factory.getbasetemp() / "any.csv"
    table.write_bytes(b"file,label,set\n" + content)
    try:
        assert all(p.label in ("real", "fake") for p in picture_sets.pictures_of_table(table))
    except PictureSetError as error:
        assert "any.csv" in str(error)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Photographs as JPEG and the same generated as PNG; one without a face."""
    folder = tmp_path_factory.mktemp("sets")
    for n in range(12):
        portrait(folder / "r", f"{n}.jpg", 420 + 7 * n, quality=70 + 2 * n)
        portrait(folder / "f", f"{n}.png", 420 + 7 * n)
    Image.new("RGB", (300, 300), "grey").save(folder / "f" / "none.png")
    return folder


def run(*words):
    app = typer.Typer()
    app.command()(evaluate)
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("protocol", ["published", "equalised"])
def test_the_command_writes_the_same_bytes_twice(bundle, sets, tmp_path, protocol):
    for out in ("one", "two"):
        result = run(
            "--real", f"cam={sets / 'r'}", "--fake", f"gen={sets / 'f'}", "--model", bundle,
            "--protocol", protocol, "--out", tmp_path / out,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert names == {"report.md", "generators.csv", "photographs.csv", "scores.csv", "evaluation.json"}
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert str(sets).encode() not in content
        assert str(bundle).encode() not in content
    evaluation = json.loads((tmp_path / "one" / "evaluation.json").read_text())
    row = evaluation["generators"][0]
    assert (row["n_generated"], row["n_real"], row["no_face"]) == (12, 12, 1)
    if protocol == "published":  # PNG against JPEG
        assert row["marked"]
        assert row["audit"] > 0.99
    assert evaluation["manifest"]["command"].startswith("lensborn evaluate --real cam=DIR --fake gen=DIR")
    with (tmp_path / "one" / "scores.csv").open() as stream:
        scores = {score["file"]: score for score in csv.DictReader(stream)}
    assert len(scores) == 25
    if protocol == "equalised":  # nothing but the number of bytes can differ
        seen = [score for score in scores.values() if not score["reason"]]
        for column in ("format", "width", "height", "quantisation"):
            assert len({score[column] for score in seen}) == 1
        assert {score["format"] for score in seen} == {"JPEG"}
    assert scores["gen/none.png"]["reason"] == "no_face"
    assert scores["gen/none.png"]["score"] == ""
    assert float(scores["cam/0.jpg"]["p_value"]) <= 1


def test_unreadable_files_are_counted_and_change_the_exit_status(bundle, sets, tmp_path):
    shutil.copytree(sets, tmp_path / "sets")
    (tmp_path / "sets" / "f" / "broken.png").write_text("x")
    rows = ["file,label,set"] + [
        f"{file.relative_to(tmp_path / 'sets')},{label},{label}"
        for label, name in (("real", "r"), ("fake", "f"))
        for file in sorted((tmp_path / "sets" / name).iterdir())
    ]
    (tmp_path / "sets" / "faces.csv").write_text("\n".join(rows))
    result = run("--table", tmp_path / "sets" / "faces.csv", "--model", bundle, "--out", tmp_path / "out")
    assert result.exit_code == 1, result.output
    with (tmp_path / "out" / "generators.csv").open() as stream:
        assert next(csv.DictReader(stream))["unreadable"] == "1"


@pytest.mark.parametrize(
    "words",
    [
        ["--real", "nothing"],
        ["--real", "a=/nowhere", "--fake", "b=/nowhere"],
        ["--table", "/nowhere.csv"],
        [],
        ["--protocol", "other"],
        ["--limit", "0"],
    ],
)
def test_wrong_usage_exits_with_2(words):
    assert run(*words).exit_code == 2
