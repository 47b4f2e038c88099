"""The experiments of the paper (Zou et al. 2025, arXiv 2501.02207) as functions of what was observed.

    table1  accuracy and AP per generator
    table2  AUC of frozen features under the same mixture: one column an encoder
    table3  the pretext tasks: encoders trained by ranking only, by manipulation only, by both
    fig4    AUC against the number of Gaussians
    fig5    t-SNE of the features

The mixture is fitted to the reference half of one named photographic set, and all numbers are of its other half, as
in `lensborn bench`; its settings are the paper's K = 8, with fewer axes and Gaussians where a set is small; the
pages of the tables then say how many Gaussians.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lensborn.bench import literature, plots
from lensborn.bench.contestants import Contestant, without_textures
from lensborn.bench.judging import FIT, PARTS, PER_COMPONENT, TEST, Entry, Refit
from lensborn.bench.observing import Observed, has_row
from lensborn.bench.protocols import PUBLISHED
from lensborn.bench.render import Section, Table, interval, latex, markdown, number, to_csv, to_json, write
from lensborn.bench.report import audits_cell
from lensborn.bench.tables import AUDIT_LIMIT, Audits, Judged, Row, pair
from lensborn.datasets.pictures import PictureSetError
from lensborn.density import SingularError

GAUSSIANS = 8
PAPER = Refit(contrasts=False, n_components=(GAUSSIANS,))
COMPONENTS = range(1, 17)  # of fig. 4

Progress = Callable[[int, int], None]

_TITLES = {
    "table1": "Table I: accuracy and average precision per generator",
    "table2": "Table II: frozen features under the same mixture",
    "table3": "Table III: the pretext tasks",
    "fig4": "Fig. 4: number of Gaussians",
    "fig5": "Fig. 5: features by t-SNE",
}


def rows_of(
    observed: Observed,
    contestants: Sequence[Contestant],
    condition: str,
    real: str,
    *,
    alpha: float,
    seed: int,
    progress: Progress = lambda *_: None,
) -> list[Row]:
    """Every encoder against every generated set, its mixture fitted to `real`; rows as of `tables.Tables`.

    `n_components`, one for all: the paper's, or as many as the photographs suffice for. Raises PictureSetError
    where they suffice for none.
    """
    for k in range(GAUSSIANS, 0, -1):
        judged = _judged(observed, k, alpha)
        if _suffices(judged, contestants, condition, real):
            audits = Audits(judged, seed)
            return _rows(judged, audits, contestants, condition, real, k, seed, progress)
    raise _too_few(condition, real)


def components_rows(
    observed: Observed,
    contestants: Sequence[Contestant],
    condition: str,
    real: str,
    *,
    alpha: float,
    seed: int,
    progress: Progress = lambda *_: None,
) -> list[Row]:
    """The rows of fig. 4, one for each number of Gaussians that the reference half allows.

    Raises PictureSetError where it allows none.
    """
    judged = _judged(observed, 1, alpha)
    if not _suffices(judged, contestants, condition, real):
        raise _too_few(condition, real)
    audits = Audits(judged, seed)  # the same for every number
    rows = []
    for k in COMPONENTS:
        judged = _judged(observed, k, alpha)
        fitted = [one for one in contestants if _suffices(judged, [one], condition, real)]
        found = _rows(judged, audits, fitted, condition, real, k, seed)
        rows += [row for row in found if row["auc"] is not None]
        progress(k, len(COMPONENTS))
    return rows


def do(
    name: str,
    observed: Observed,
    contestants: Sequence[Contestant],
    condition: str,
    real: str,
    out: Path,
    *,
    manifest: Row,
    progress: Progress = lambda *_: None,
) -> str:
    """Do the experiment of that name and write its files to `out`; returns its Markdown without the manifest.

    The manifest's alpha and seed are those used. Raises PictureSetError where `real` has too few photographs to
    fit a mixture to, PlotError where a plot cannot be drawn.
    """
    settings = {"alpha": manifest["alpha"], "seed": manifest["seed"], "progress": progress}
    out.mkdir(parents=True, exist_ok=True)
    tables: tuple[Table, ...] = ()
    pictures: tuple[tuple[str, str], ...] = ()
    rows: list[Row] = []
    fewer = ""
    if name == "fig5":
        features, sets = points_of(observed, contestants[0], condition)
        points = plots.embed(features, manifest["seed"])
        plots.embedding_plot(points, sets, out / "fig5.svg")
        rows = [{"set": one, "x": float(x), "y": float(y)} for one, (x, y) in zip(sets, points, strict=True)]
        pictures = (("t-SNE of the features", "fig5.svg"),)
    elif name == "fig4":
        rows = components_rows(observed, contestants, condition, real, **settings)
        plots.components_plot(rows, out / "fig4.svg")
        pictures = (("AUC against the number of Gaussians", "fig4.svg"),)
    else:
        rows = rows_of(observed, contestants, condition, real, **settings)
        makers = [accuracy_table] * (name != "table2") + [auc_table] * (name != "table1")
        tables = tuple(make(rows) for make in makers)
        if (k := rows[0]["n_components"]) < GAUSSIANS:
            fewer = (
                f"{real} has photographs for {k} of the paper's {GAUSSIANS} Gaussians: so many were fitted. "
            )
    text = (
        f"{_TITLES[name]}; condition {condition}, mixture fitted to half of {real}, measured "
        f"on its other half. {fewer}Encoders and data are not the paper's; its numbers stand below as published. "
        "Audits: the AUC of classifiers that see the container alone, and high-pass statistics alone; (f) and (t) "
        f"mark those above {AUDIT_LIMIT}."
    )
    sections = [Section("", text, tables, pictures), Section("Published numbers", "", (literature.table(),))]
    body = markdown(_TITLES[name], sections)
    document = {"manifest": manifest, "rows": rows}
    write(
        out,
        {
            f"{name}.md": markdown(
                _TITLES[name], [*sections, Section("Manifest", f"```json\n{to_json(manifest)}```")]
            ),
            f"{name}.tex": latex(sections),
            f"{name}.csv": to_csv(rows),
            f"{name}.json": to_json(document),
        },
    )
    return body


def accuracy_table(rows: Sequence[Row]) -> Table:
    """Accuracy and AP, a generator a row, an encoder two columns (tables I and III)."""
    return _table(
        rows,
        "Accuracy and average precision",
        {"accuracy": lambda row: number(row["accuracy"]), "AP": lambda row: interval(row, "ap")},
    )


def auc_table(rows: Sequence[Row]) -> Table:
    """AUC, a generator a row, an encoder a column (table II)."""
    return _table(rows, "AUC", {"AUC": lambda row: interval(row, "auc")})


def points_of(
    observed: Observed, contestant: Contestant, condition: str
) -> tuple[NDArray[np.float32], list[str]]:
    """Features (N, D), without textures, of all pictures that have them, and the set of each (fig. 5)."""
    features = without_textures(observed.conditions[condition].observed[contestant.name], contestant)
    there = np.flatnonzero(has_row(features))
    return np.asarray(features[there], dtype=np.float32), [observed.pictures[n].set for n in there]


def _judged(observed: Observed, k: int, alpha: float) -> Judged:
    """Judgements by mixtures of `k` Gaussians."""
    return Judged(observed, reference=True, alpha=alpha, refit=replace(PAPER, n_components=(k,)))


def _suffices(judged: Judged, contestants: Sequence[Contestant], condition: str, real: str) -> bool:
    """Whether every encoder's mixture can be fitted to the photographs of `real`."""
    try:
        return all(judged(Entry(one, refitted=True), condition, real) is not None for one in contestants)
    except SingularError:  # a Gaussian had too few of them
        return False


def _too_few(condition: str, real: str) -> PictureSetError:
    parts = dict(PARTS)
    share = 1 - parts[TEST] if condition == PUBLISHED else parts[FIT]
    least = math.ceil(PER_COMPONENT / share)
    return PictureSetError(
        f"{real} has too few photographs with a face, or too many alike, to fit a mixture to: give about "
        f"{GAUSSIANS * least} for the paper's {GAUSSIANS} Gaussians, or at least {least}, for one"
    )


def _rows(
    judged: Judged,
    audits: Audits,
    contestants: Sequence[Contestant],
    condition: str,
    real: str,
    k: int,
    seed: int,
    progress: Progress = lambda *_: None,
) -> list[Row]:
    wanted = [(one, fake) for one in contestants for fake in judged.fake_sets()]
    rows = []
    for done, (contestant, fake) in enumerate(wanted, start=1):
        row = pair(judged, audits, Entry(contestant, refitted=True), condition, fake, real, seed)
        rows.append({**row, "detector": contestant.name, "n_components": k})
        progress(done, len(wanted))
    return rows


def _table(rows: Sequence[Row], title: str, columns: dict[str, Callable[[Row], str]]) -> Table:
    encoders = list(dict.fromkeys(row["detector"] for row in rows))
    sets = list(dict.fromkeys(row["generated"] for row in rows))
    found = {(row["generated"], row["detector"]): row for row in rows}
    header = ("generated", "n", *(f"{encoder}, {name}" for encoder in encoders for name in columns), "audits")
    body = [
        (
            name,
            f"{found[name, encoders[0]]['n_generated']} / {found[name, encoders[0]]['n_real']}",
            *(column(found[name, encoder]) for encoder in encoders for column in columns.values()),
            audits_cell([found[name, encoders[0]]]),
        )
        for name in sets
    ]
    return Table(title, header, (*body, _means(rows, encoders, columns)))


def _means(
    rows: Sequence[Row], encoders: Sequence[str], columns: dict[str, Callable[[Row], str]]
) -> tuple[str, ...]:
    cells = []
    for encoder in encoders:
        for name in columns:
            key = {"accuracy": "accuracy", "AP": "ap", "AUC": "auc"}[name]
            values = [row[key] for row in rows if row["detector"] == encoder and row[key] is not None]
            cells.append(number(float(np.mean(values))) if values else "-")
    return "mean", "", *cells, audits_cell(rows)
