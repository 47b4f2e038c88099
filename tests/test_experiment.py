"""Experiments of tools/: scores against literal ones, the choice on two generators, and which rows are run."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.numpy import save_file
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

torch = pytest.importorskip("torch")
TOOLS = Path(__file__).parent.parent / "tools"
if not TOOLS.is_dir():
    pytest.skip("the tools are not part of an installation", allow_module_level=True)
sys.path.insert(0, str(TOOLS))

import experiment  # noqa: E402
import experiment_page  # noqa: E402
import ladder  # noqa: E402
from experiment_scores import Setting, component_distance, fitted, mixture_of, neighbour_distance  # noqa: E402

from lensborn.bench.protocols import EQUALISED, PUBLISHED  # noqa: E402
from lensborn.datasets.corpus import LANDMARKS, TAGS, split_of, write_table  # noqa: E402

RNG = np.random.default_rng(0)
PHOTOGRAPHS = np.concatenate([RNG.normal(at, 1, (150, 6)) * np.arange(1, 7) for at in (-3, 3)])
OTHERS = RNG.normal(0, 2, (9, 6)) * np.arange(1, 7)
PLAIN = {"encoder": "any", "dims": 0, "components": 2, "shrinkage": 0.0}


def score(setting, counterparts=None, source="any", seed=0):
    return fitted(setting, source, seed, PHOTOGRAPHS, counterparts)(OTHERS)


def test_the_distance_is_that_to_the_gaussian_that_gave_a_row():
    mixture = mixture_of(Setting(**PLAIN), PHOTOGRAPHS, 0)
    found = component_distance(mixture, OTHERS)
    for row, distance in zip(OTHERS, found, strict=True):
        covariances = [np.linalg.inv(p.astype(float) @ p.T) for p in mixture.precisions]
        centres = mixture.means + mixture.offset
        joint = [
            np.log(w) + multivariate_normal(m, c).logpdf(row)
            for w, m, c in zip(mixture.weights, centres, covariances, strict=True)
        ]
        k = int(np.argmax(joint))
        away = row - centres[k]
        assert distance == pytest.approx(np.sqrt(away @ np.linalg.solve(covariances[k], away)), rel=1e-4)


def test_a_ratio_is_one_density_less_the_other():
    counterparts = 2 * PHOTOGRAPHS
    one = mixture_of(Setting(**PLAIN), PHOTOGRAPHS, 0)
    with_axes = score(Setting(**PLAIN, against="manipulated"), counterparts)
    assert_allclose(
        with_axes, one.score(OTHERS) - mixture_of(Setting(**PLAIN), counterparts, 0).score(OTHERS), atol=1e-2
    )


def test_neighbours_are_counted_without_oneself():
    known = np.array([[0.0], [1.0], [3.0]])
    assert_allclose(neighbour_distance(known, known, 1), [1, 1, 2])
    assert_allclose(neighbour_distance(known, known, 2), [3, 2, 3])


def test_heads_are_read_from_the_run_and_joined_by_their_deviations(tmp_path):
    tensors = {
        name: RNG.normal(size=(n, 6)).astype(np.float32)
        for name, n in {"manipulation.weight": 1, "classes.make.weight": 4, "rank.weight": 4}.items()
    }
    tensors |= {name.replace("weight", "bias"): np.ones(len(t), np.float32) for name, t in tensors.items()}
    save_file(tensors, tmp_path / "best.safetensors")
    source = str(tmp_path)

    def logits(name, rows):
        return rows @ tensors[f"{name}.weight"].T + 1

    literal = {
        "manipulation": lambda rows: logits("manipulation", rows)[:, 0],
        "energy": lambda rows: -logsumexp(logits("classes.make", rows), axis=1),
        "rank": lambda rows: np.linalg.norm(logits("rank", rows), axis=1),
    }
    for name, way in literal.items():
        assert_allclose(score(Setting(**PLAIN, density=name), source=source), way(OTHERS), rtol=1e-5)
    assert_allclose(score(Setting(**PLAIN, density="length")), np.sqrt((OTHERS**2).sum(axis=1)), rtol=1e-12)
    less = score(Setting(**PLAIN, density="length+rank", weights=(1.0, -0.5)), source=source)
    length, rank = (
        (of(OTHERS) - of(PHOTOGRAPHS).mean()) / of(PHOTOGRAPHS).std()
        for of in (lambda rows: np.linalg.norm(rows, axis=1), literal["rank"])
    )
    assert_allclose(less, length - rank / 2, rtol=1e-5)
    joined = score(Setting(**PLAIN, density="energy+rank"), source=source)
    wanted = sum(
        (literal[name](OTHERS) - literal[name](PHOTOGRAPHS).mean()) / literal[name](PHOTOGRAPHS).std()
        for name in ("energy", "rank")
    )
    assert_allclose(joined, wanted, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"density": "guess"}, {"layers": (2,)}], ids=["density", "layer"])
def test_what_is_not_known_is_said(changes):
    with pytest.raises(ValueError, match=r"no density 'guess'|of rungs alone"):
        score(Setting(**PLAIN, **changes))


def card(runs=1, **auc):
    aucs = {name.replace("sd", "sd2.1"): value for name, value in auc.items()}
    return {
        "runs": runs,
        "summary": {condition: {**aucs, "alarms ffhq": 0.04} for condition in (PUBLISHED, EQUALISED)},
    }


def test_a_row_is_chosen_on_two_generators_and_told_of_the_third():
    cards = {
        "a": card(stylegan1=0.9, stylegan2=0.5, sd=0.2),
        "b": card(stylegan1=0.4, stylegan2=0.7, sd=0.8),
        "failed": {"error": "singular"},
    }
    *lines, mean = experiment_page.chosen({"01-x": cards})[2:]
    assert [line.split(" | ")[:5] for line in lines] == [
        ["| stylegan1", "all, 2", "01-x, b", "0.750", "0.400"],
        ["| stylegan2", "all, 2", "01-x, b", "0.600", "0.700"],
        ["| sd2.1", "all, 2", "01-x, a", "0.700", "0.200"],
    ]
    assert "ffhq 4 %" in lines[0]
    assert " 0.433 " in mean


def test_rows_of_several_seeds_are_chosen_among_themselves_and_the_shipped_kind_is_ranked():
    stem, name = experiment_page.SHIPPED_KIND.split(", ")
    cards = {
        "lucky": card(stylegan1=0.9, stylegan2=0.9, sd=0.9),
        "steady": card(3, stylegan1=0.8, stylegan2=0.4, sd=0.5),
        name: card(3, stylegan1=0.6, stylegan2=0.5, sd=0.6),
    }
    several = experiment_page.chosen({stem: cards})[-4:-1]
    assert [line.split(" | ")[2] for line in several] == [
        f"{stem}, {name}",  # .55 against .45 on the two others
        f"{stem}, steady",
        f"{stem}, steady",
    ]
    assert [line.split(" | ")[-1] for line in several] == [
        "1: 0.550, 0.600 |",
        "2: 0.600, 0.500 |",
        "2: 0.550, 0.600 |",
    ]


def test_a_row_is_run_again_where_its_setting_or_its_runs_changed(tmp_path):
    path = tmp_path / "20-x.toml"
    path.write_text('question = "?"\n[base]\nencoder = "e"\n[rows.one]\n[rows.two]\ndims = 8\n')
    runs = {"e": ["rung:e-0"]}
    rows = experiment.rows_without_card(path, runs)
    assert [(row.name, row.setting.dims) for row in rows] == [("one", 64), ("two", 8)]
    for row in rows:  # an old card knows fewer settings: what it does not say is the default
        row.card.write_text(
            json.dumps({"setting": {"encoder": "e", "dims": row.setting.dims, "seeds": [0, 1, 2]}})
        )
    assert experiment.rows_without_card(path, runs) == []
    assert len(experiment.rows_without_card(path, {"e": ["rung:e-0", "rung:e-1"]})) == 2
    path.write_text(path.read_text().replace("dims = 8", 'dims = 8\nside = "two"'))
    assert [row.name for row in experiment.rows_without_card(path, runs)] == ["two"]
    with pytest.raises(SystemExit, match="needs the encoder e"):
        experiment.rows_without_card(path, {})


def test_experiments_from_pictures_to_the_page(tmp_path, monkeypatch):
    """All pictures are of one face, in many lights: the numbers say nothing, that they are there does."""
    folder, root, rung = tmp_path / "corpus", tmp_path / "root", tmp_path / "ladder" / "tiny-0"
    for path in (folder, root / "experiments", root / "docs", rung):
        path.mkdir(parents=True)
    with Image.open(TOOLS.parent / "examples" / "generated-man.jpg") as image:
        face = np.asarray(image.convert("RGB").resize((220, 220)))
    rng = np.random.default_rng(0)

    def write(name):
        light = face * rng.uniform(0.6, 1.1) + rng.normal(0, rng.uniform(1, 12), face.shape)
        Image.fromarray(light.clip(0, 255).astype(np.uint8)).save(folder / name)
        return name

    sets = {"ffhq": ("real", 52), "celeba-hq": ("real", 12), "stylegan1": ("fake", 12)}
    sets |= {"stylegan2": ("fake", 12), "sd2.1": ("fake", 12)}
    labelled = ["file,label,set,source"]
    for name, (label, number) in sets.items():
        labelled += [f"{write(f'{name}-{n}.png')},{label},{name},{name}" for n in range(number)]
    (folder / "faces.csv").write_text("\n".join(labelled) + "\n")
    sources = [f"s{n}" for n in range(400) if split_of(f"s{n}") in ("validate", "calibrate", "test")][:45]
    columns = dict.fromkeys((*TAGS, *LANDMARKS), "1") | {"size": "220"}
    write_table(
        folder, [columns | {"file": write(f"{s}.png"), "photo_sha1": s, "source": s} for s in sources]
    )

    torch.manual_seed(0)
    settings = ladder.Rung(view="face", patch=64, pretrained=False)
    save_file(torch_arrays(ladder.RungModel(settings)), rung / "best.safetensors")
    (rung / "settings.json").write_text(json.dumps(asdict(settings)))
    (rung / "card.json").write_text("{}")
    (root / "experiments" / "head.md").write_text("# Experiments\n")
    path = root / "experiments" / "20-tiny.toml"
    asked = {
        "base": 'encoder = "tiny"\ndims = 2\ncomponents = 1',
        "rows.one": "",
        "rows.ratio": 'against = "traceless"\nlayers = [1]',
        "rows.own": 'fit = "all"\ncalibrate = "own"',
        "rows.fails": "layers = [9]",
    }
    text = "".join(f"[{name}]\n{lines}\n" for name, lines in asked.items())
    path.write_text(f'question = "Which?"\nlearnt = "Nothing."\nplot = ["one"]\n{text}')
    monkeypatch.setattr(experiment, "ROOT", root)
    monkeypatch.setattr(experiment, "REPLICATES", 20)
    words = [path, "--corpus", folder, "--ladder", rung.parent, "--keep", tmp_path / "keep"]
    monkeypatch.setattr(sys, "argv", ["experiment.py", *map(str, words)])
    experiment.main()
    cards = {
        name: json.loads((path.with_name(f"20-tiny.{name}.json")).read_text()) for name in ("one", "own")
    }
    rows = [row for row in cards["one"]["rows"] if "auc" in row]
    assert {row["generated"] for row in rows} == {"stylegan1", "stylegan2", "sd2.1"}
    assert all(0 <= row["auc"] <= 1 and row["n"] > 0 for row in rows)
    measured = {row["real"]: row["n"] for row in cards["own"]["rows"] if "false_alarms" in row}
    halves = {row["real"]: row["n"] for row in cards["one"]["rows"] if "false_alarms" in row}
    assert measured["ffhq"] < halves["ffhq"] == 52
    page = (root / "docs" / "experiments.md").read_text()
    assert "failed: tiny-0 has 5 stages, no stage 9" in page and "Nothing." in page and "| ratio |" in page
    assert (root / "docs" / "experiments-20-tiny.svg").read_text().startswith("<?xml")
    kept = {one: one.stat().st_mtime_ns for one in (tmp_path / "keep").glob("*.safetensors")}
    path.with_name("20-tiny.one.json").unlink()
    experiment.main()  # from what was kept
    assert json.loads(path.with_name("20-tiny.one.json").read_text()) == cards["one"]
    assert {one: one.stat().st_mtime_ns for one in kept} == kept and len(kept) == 2


def torch_arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def test_encoders_side_by_side_are_those_of_the_same_seeds():
    runs = {
        "a": ["rung:x/a-0", "rung:x/a-1", "rung:x/a-2"],
        "b": ["rung:x/b-2", "rung:x/b-0"],
        "c": ["rung:x/c-7"],
    }
    assert experiment.sources_of("a", runs) == runs["a"]
    assert experiment.sources_of("a&b", runs) == ["rung:x/a-0&rung:x/b-0", "rung:x/a-2&rung:x/b-2"]
    assert experiment.sources_of("a&missing", runs) is None
    with pytest.raises(ValueError, match="no seed"):
        experiment.sources_of("a&c", runs)


def test_an_unknown_way_of_joining_scores_is_refused():
    setting = Setting(density="length+length", join="least")
    with pytest.raises(ValueError, match="no join 'least'"):
        fitted(setting, "lensborn:x", 0, np.eye(3), None)


def test_what_was_reached_is_the_best_row_of_enough_seeds():
    def card(runs, **values):
        numbers = {"stylegan1": 0.5, "stylegan2": 0.6, "sd2.1": 0.7, "mean": 0.6, "matched": 0.5} | values
        return {"runs": runs, "summary": dict.fromkeys(experiment_page.CONDITIONS, numbers)}

    cards = {"01-x": {"few": card(2, mean=0.9), "good": card(3, mean=0.8), "even": card(3, stylegan1=0.6)}}
    lines = experiment_page.reached(cards)
    assert "| equalised-256: mean AUC | 0.75 | 01-x, good | 0.800 |" in lines
    assert "| equalised-256: every generator | 0.60 | 01-x, even | 0.600 |" in lines
    assert experiment_page.reached({"01-x": {"few": card(2)}})[-1].startswith("| ---")
