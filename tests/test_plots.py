from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from lensborn import report
from lensborn.bench import plots
from lensborn.bench.delivery import STEPS


def spread(name, value):
    return {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.05}


def auc_rows(sets):
    return [
        {"detector": who, "generated": f"generator {n}", **spread("auc", 0.3 + n / 60)}
        for who in ("ours", "theirs")
        for n in range(sets)
    ]


def delivery_rows(sets):
    steps = [{"family": step.family, "strength": step.strength} for step in STEPS.values()]
    return [
        step | {"generated": f"generator {n}", **spread("auc", 0.4 + n / 60)}
        for step in steps
        for n in range(sets)
    ] + [step | {"real": "ffhq", **spread("false_alarms", 0.06)} for step in steps]


def points():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 2)), ["ffhq"] * 30 + ["sd2.1"] * 30


DRAWN = {
    "auc of 3": lambda path: plots.auc_plot(auc_rows(3), path),
    "auc of 26": lambda path: plots.auc_plot(auc_rows(26), path),
    "delivery of 3": lambda path: plots.delivery_plot(delivery_rows(3), path),
    "delivery of 26": lambda path: plots.delivery_plot(delivery_rows(26), path),
    "components": lambda path: plots.components_plot(
        [
            {"detector": "ours", "generated": "sd2.1", "n_components": k, **spread("auc", 0.6)}
            for k in range(1, 17)
        ],
        path,
    ),
    "embedding": lambda path: plots.embedding_plot(*points(), path),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_is_svg_and_the_same_twice(tmp_path, name):
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    DRAWN[name](first)
    DRAWN[name](second)
    assert ElementTree.parse(first).getroot().tag.endswith("svg")  # noqa: S314 - our own file
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.svg", "second.svg"]


@pytest.mark.parametrize("name", ["a$\\frac$ $x^2$", "caf\udce9\n\x1b[2J"])
def test_names_are_drawn_as_they_are(tmp_path, name):
    """A set may be called anything: mathematics, bytes that are no UTF-8, control characters."""
    rows = [{"detector": name, "generated": name, "n_components": 1, **spread("auc", 0.6)}]
    steps = [row | {"generated": name} for row in delivery_rows(1)[:3] if "generated" in row]
    flagged = [{"panel": name, "set": name, "generated": True, "alpha": 0.1, "flagged": 0.2}]
    drawn = {
        "auc": lambda path: plots.auc_plot(rows, path),
        "delivery": lambda path: plots.delivery_plot(steps, path),
        "components": lambda path: plots.components_plot(rows, path),
        "reliability": lambda path: plots.reliability_plot([{"kind": name, "given": 0.5, "was": 0.4}], path),
        "flagged": lambda path: plots.flagged_plot(flagged, path),
        "embedding": lambda path: plots.embedding_plot(points()[0], [name] * 60, path),
    }
    for what, draw in drawn.items():
        draw(tmp_path / f"{what}.svg")
        # matplotlib writes each text that it draws beside its outlines, as a comment
        assert f"<!-- {report.printable(name)} -->" in (tmp_path / f"{what}.svg").read_text("utf-8"), what


def test_a_plot_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(KeyError):
        plots.auc_plot([{"detector": "ours", "generated": "a", "auc": 0.5}], tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def test_t_sne_keeps_groups_together_and_is_seeded():
    pytest.importorskip("openTSNE")
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 1, (30, 8)), rng.normal(8, 1, (30, 8))]).astype(np.float32)
    found = plots.embed(features, 0)
    assert found.shape == (60, 2)
    np.testing.assert_array_equal(found, plots.embed(features, 0))
    gap = np.linalg.norm(found[:30].mean(axis=0) - found[30:].mean(axis=0))
    assert gap > 2 * found[:30].std()
    with pytest.raises(plots.PlotError, match="at least 10"):
        plots.embed(features[:5], 0)
