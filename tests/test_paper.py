"""The experiments of the paper: from the command to its files, and how many Gaussians they take."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("matplotlib")

from lensborn.bench import experiments, tables
from lensborn.bench.audit import Container
from lensborn.bench.contestants import BundleContestant
from lensborn.bench.observing import Condition, Observed
from lensborn.bench.protocols import EQUALISED, PUBLISHED
from lensborn.cli import app
from lensborn.datasets.pictures import Picture, PictureSetError

PORTRAIT = Path(__file__).parent.parent / "examples" / "portrait-fujifilm-x-t10.jpg"
TABLES = ("table1", "table2", "table3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Photographs enough for one Gaussian, and for a t-SNE; generated pictures whose faces are darker."""
    folder = tmp_path_factory.mktemp("paper")
    with Image.open(PORTRAIT) as image:
        whole = image.convert("RGB").resize((360, 360 * image.height // image.width))
    for kind, count, shade in (("r", 40, 1.0), ("f", 8, 0.5)):
        (folder / kind).mkdir()
        for n in range(count):
            width = 240 + 3 * n
            picture = whole.resize((width, width * whole.height // whole.width))
            picture.point(lambda value, by=shade - n / 400: int(value * by)).save(folder / kind / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def paper(folders, tiny_export, tmp_path_factory):
    """A call of `lensborn paper`; what was seen is kept for the next."""
    out = tmp_path_factory.mktemp("out")

    def call(experiment, *words, real="r", out=out):
        given = ["--real", f"cam={folders / real}", "--fake", f"gen={folders / 'f'}", "--fitted-to", "cam"]
        encoder = ["--encoder", f"ours=lensborn:{tiny_export}"]
        words = ["paper", experiment, *given, *encoder, "--out", str(out), *words]
        result = CliRunner().invoke(app, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result, out

    return call


def written(paper, experiment, *words):
    result, out = paper(experiment, *words)
    assert result.exit_code == 0, result.output
    return json.loads((out / f"{experiment}.json").read_text("utf-8")), out


@pytest.mark.parametrize("experiment", [*TABLES, "fig4"])
def test_an_experiment_measures(paper, experiment):
    content, out = written(paper, experiment)
    assert content["rows"]
    for row in content["rows"]:
        assert (row["detector"], row["generated"], row["n_generated"]) == ("ours", "gen", 8)
        assert row["n_real"] >= 10
        assert 0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1
        assert row["ap"] is not None
    assert {f"{experiment}.{kind}" for kind in ("md", "csv", "tex")} <= {file.name for file in out.iterdir()}
    numbers = [row["n_components"] for row in content["rows"]]
    assert 0 < numbers[-1] < experiments.GAUSSIANS  # the set is small
    text = (out / f"{experiment}.md").read_text("utf-8")
    if experiment == "fig4":
        assert numbers == list(range(1, numbers[-1] + 1))
        assert (out / "fig4.svg").is_file()
    else:
        assert f"{numbers[0]} of the paper's 8 Gaussians" in text
    assert "0.9343" in text  # the paper's own, beside ours


def test_encoders_stand_side_by_side(paper, tiny_export):
    content, _ = written(paper, "table1", "--encoder", f"again=lensborn:{tiny_export}")
    ours, again = content["rows"]
    assert (ours["detector"], again["detector"]) == ("ours", "again")
    assert ours["auc"] == again["auc"]


def test_features_are_drawn(paper):
    pytest.importorskip("openTSNE")
    content, out = written(paper, "fig5")
    assert [row["set"] for row in content["rows"]] == ["cam"] * 40 + ["gen"] * 8
    assert (out / "fig5.svg").is_file()


@pytest.mark.parametrize(
    ("experiment", "word"), [("fig5", "at least 10"), ("table1", "too few"), ("fig4", "too few")]
)
def test_too_few_pictures_are_wrong_usage(paper, tmp_path, experiment, word):
    if experiment == "fig5":
        pytest.importorskip("openTSNE")
    result, _ = paper(experiment, "--limit", "4", out=tmp_path)
    assert result.exit_code == 2, result.output
    assert word in " ".join(result.output.replace("│", " ").split())
    assert not list(tmp_path.glob(f"{experiment}*"))


@pytest.mark.parametrize("alpha", ["2", "0", "1", "-0.1", "nan"])
def test_a_share_that_is_none_is_refused_at_once(paper, tmp_path, alpha):
    result, _ = paper("table1", f"--alpha={alpha}", out=tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert "between 0 and 1" in result.output
    assert not (tmp_path / "out").exists()


def test_the_manifest_holds_the_whole_command(paper, folders):
    _ = written(paper, "table1")
    content, _ = written(paper, "table1", "--alpha", "0.1234567")
    assert "--alpha 0.1234567 " in content["manifest"]["command"]
    assert "--layout" not in content["manifest"]["command"]
    (folders / "more").mkdir()
    (folders / "more" / "faces.csv").write_text("file,label,set\n0.png,fake,other\n")
    (folders / "more" / "0.png").write_bytes((folders / "f" / "0.png").read_bytes())
    content, _ = written(paper, "table1", str(folders / "more"), "--layout", "table")
    command = content["manifest"]["command"]
    assert command.startswith("lensborn paper table1 more --layout table --encoder ours=lensborn:")
    assert "--alpha" not in command
    assert str(folders) not in command


# --- observations without files ----------------------------------------------------------------------


def observed_of(name, photographs, condition=PUBLISHED):
    """Features of photographs and of two generated sets that lie apart from them."""
    rng = np.random.default_rng(0)
    sets = ["cam"] * photographs + ["near"] * 40 + ["far"] * 40
    shifts = {"cam": 0, "near": 1, "far": 5}
    features = rng.normal([[shifts[one]] * 8 for one in sets])
    pictures = [
        Picture(Path("x"), f"{n}", one, "real" if one == "cam" else "fake") for n, one in enumerate(sets)
    ]
    size = len(sets)
    containers = [Container(300, 300, 10_000 + n, "PNG") for n in range(size)]
    seen = Condition([None] * size, containers, np.full((size, 1), math.nan), {name: features})
    return Observed(pictures, [""] * size, np.full(size, 300.0), {condition: seen})


@pytest.fixture
def mine(detector):
    return BundleContestant(detector, refits=True)


@pytest.mark.parametrize(
    ("condition", "photographs", "least", "most"),
    [(PUBLISHED, 600, 8, 8), (EQUALISED, 1200, 8, 8), (PUBLISHED, 80, 2, 6), (EQUALISED, 160, 2, 6)],
)
def test_the_papers_gaussians_or_as_many_as_photographs_suffice_for(
    mine, condition, photographs, least, most
):
    observed = observed_of(mine.name, photographs, condition)
    rows = experiments.rows_of(observed, [mine], condition, "cam", alpha=0.05, seed=0)
    assert [row["generated"] for row in rows] == ["near", "far"]
    assert len({row["n_components"] for row in rows}) == 1
    assert least <= rows[0]["n_components"] <= most
    assert rows[1]["auc"] > 0.99
    assert rows[0]["auc"] > 0.6


def test_photographs_that_are_all_alike_are_wrong_usage(mine):
    observed = observed_of(mine.name, 240)
    observed.conditions[PUBLISHED].observed[mine.name][:240] = 1
    for make in (experiments.rows_of, experiments.components_rows):
        with pytest.raises(PictureSetError, match="too many alike"):
            make(observed, [mine], PUBLISHED, "cam", alpha=0.05, seed=0)


@pytest.mark.parametrize(("condition", "for_eight", "for_one"), [(PUBLISHED, 160, 20), (EQUALISED, 320, 40)])
def test_too_few_photographs_for_one_gaussian_say_how_many_it_takes(mine, condition, for_eight, for_one):
    observed = observed_of(mine.name, 9, condition)
    for make in (experiments.rows_of, experiments.components_rows):
        with pytest.raises(
            PictureSetError, match=f"cam has too few .* {for_eight} for .* {for_one}, for one"
        ):
            make(observed, [mine], condition, "cam", alpha=0.05, seed=0)


def test_figure_4_audits_each_pair_once(mine, monkeypatch):
    calls = []
    audit = tables.audit
    monkeypatch.setattr(tables, "audit", lambda *args, **options: calls.append(1) or audit(*args, **options))
    observed = observed_of(mine.name, 100)
    rows = experiments.components_rows(observed, [mine], PUBLISHED, "cam", alpha=0.05, seed=0)
    assert len({row["n_components"] for row in rows}) > 2  # as far as none is of too few
    assert len(calls) == 2 * 2  # two audits of two sets
