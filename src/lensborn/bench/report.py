"""The report of a benchmark: what was measured, what it means, and what it does not."""

import hashlib
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lensborn
from lensborn.bench import literature, metrics
from lensborn.bench.contestants import Contestant
from lensborn.bench.judging import ALL
from lensborn.bench.observing import Observed
from lensborn.bench.protocols import EQUALISED, PUBLISHED, REASONS, is_delivery
from lensborn.bench.render import (
    Section,
    Table,
    interval,
    latex,
    markdown,
    number,
    percent,
    to_csv,
    to_json,
    write,
)
from lensborn.bench.tables import AUDIT_LIMIT, NO_SCORE, Row, Tables

_PACKAGES = ("numpy", "scipy", "scikit-learn", "openvino", "opencv-python-headless", "pillow")
_MARKS = {"container": "f", "texture": "t"}

_CONDITIONS = {
    PUBLISHED: "Files as they are, the whole picture, its largest face. Size, codec and quality differ between "
    "the sets, and a detector may live on that: read the audit first.",
    EQUALISED: "The crop of the largest face at 256 px, JPEG quality 95 without chroma subsampling, every file "
    "padded to one length: the container says nothing. Smaller crops were enlarged, which leaves a trace; "
    "their "
    "share is in photographs.csv and pairs.csv (`enlarged`).",
    "equalised-192": "The same at 192 px, only for faces whose crop is at least 160 px, so that hardly any is "
    "enlarged; the others count as too small.",
    "equalised-512": "The same at 512 px, only for faces whose crop is at least that large, so that "
    "nothing was "
    "enlarged; the others count as too small.",
}
_PAIR_HEADER = (
    "generated", "n", "AUC", "AP", "TPR@1 %", "TPR@5 %", "accuracy", "found %",
    "audit: container", "audit: texture",
)  # fmt: skip
_SUMMARY_HEADER = (
    "detector", "condition", "sets", "mean AUC", "AUC pooled", "worst set", "its AUC", "mean AP", "mean TPR@5 %",
    "mean accuracy", "false alarms %", "audits",
)  # fmt: skip
_PRINTED = ("detector", "condition", "sets", "mean AUC", "worst set", "its AUC", "false alarms %", "audits")


def describe(observed: Observed, contestants: Sequence[Contestant], *, command: str, **settings: Any) -> Row:
    """The manifest: what was measured, on which bytes, by which versions; free of times and machine paths."""
    digest = hashlib.sha256()
    for picture, sha256 in zip(observed.pictures, observed.sha256, strict=True):
        line = f"{picture.set}\t{picture.label}\t{picture.name}\t{sha256}\n"
        digest.update(line.encode("utf-8", "backslashreplace"))
    versions = {"lensborn": lensborn.__version__, "python": platform.python_version()}
    return {
        "command": command,
        "detectors": [{"name": one.name, "sha256": one.sha256 or None} for one in contestants],
        "pictures": len(observed.pictures),
        "pictures_sha256": digest.hexdigest(),
        "conditions": list(observed.conditions),
        **settings,
        "bootstrap_replicates": metrics.REPLICATES,
        "versions": versions | {name: _version(name) for name in _PACKAGES},
    }


def write_report(
    folder: Path, tables: Tables, scores: Sequence[Row], manifest: Row, *, plots: bool = True
) -> list[Path]:
    """Write report.md, tables.tex, the CSV tables, bench.json and, with `plots`, the plots; returns their paths."""
    drawn = _plots(folder, tables) if plots else []
    sections = sections_of(tables, manifest, drawn)
    names = ", ".join(one["name"] for one in manifest["detectors"])
    texts = {
        "report.md": markdown(f"Benchmark of {names}", sections),
        "tables.tex": latex(sections),
        "scores.csv": to_csv(scores),
        **{f"{name}.csv": to_csv(rows) for name, rows in asdict(tables).items() if rows},
        "bench.json": to_json({"manifest": manifest, **asdict(tables)}),
    }
    return [*write(folder, texts), *(folder / file for _, file in drawn)]


def sections_of(tables: Tables, manifest: Row, drawn: Sequence[tuple[str, str]] = ()) -> list[Section]:
    """The report's sections; `drawn`: the plots, as alternative text and file name."""
    conditions = [name for name in manifest["conditions"] if not is_delivery(name)]
    sections = [Section("", _introduction(manifest), (summary_table(tables),))]
    sections += [
        Section(
            condition,
            _CONDITIONS[condition],
            tuple(
                table
                for entry in _names(tables.summary, "detector")
                for table in condition_tables(tables, condition, entry)
            ),
            tuple(one for one in drawn if one[1] == f"auc-{condition}.svg"),
        )
        for condition in conditions
    ]
    sections.append(Section("Photographs flagged", _flagged_text(manifest), (flagged_table(tables),)))
    if any(is_delivery(name) for name in manifest["conditions"]):
        pictures = tuple(one for one in drawn if one[1].startswith("delivery"))
        sections.append(Section("Delivery", _DELIVERY_TEXT, tuple(delivery_tables(tables)), pictures))
    if tables.comparisons:
        sections.append(Section("Comparisons", _COMPARISON_TEXT, (comparison_table(tables),)))
    sections.append(Section("Published numbers", "", (literature.table(),)))
    sections.append(Section("What these numbers say, and what they do not", _MEANING))
    return [*sections, Section("Manifest", f"```json\n{to_json(manifest)}```")]


def printed_tables(tables: Tables) -> list[Table]:
    """What a terminal shows: the summary, the AUCs against each photographic set, and what was flagged."""
    pairs = [row for row in tables.pairs if not is_delivery(row["condition"])]
    matrices = [
        table
        for condition in _names(pairs, "condition")
        for entry in _names(pairs, "detector")
        for table in condition_tables(tables, condition, entry)[1:]
    ]
    return [summary_table(tables, _PRINTED), *matrices, flagged_table(tables)]


def summary_table(tables: Tables, columns: Sequence[str] = _SUMMARY_HEADER) -> Table:
    """An entry and condition a row: means over the generated sets, against all photographs."""
    kept = [_SUMMARY_HEADER.index(column) for column in columns]
    rows = (
        (
            row["detector"],
            row["condition"],
            str(row["generators"]),
            interval(row, "macro_auc"),
            interval(row, "micro_auc"),
            row["worst"],
            interval(row, "worst_auc"),
            number(row["macro_ap"]),
            number(row["macro_tpr_at_5"]),
            number(row["macro_accuracy"]),
            percent(row, "macro_false_alarms"),
            audits_cell(_pairs(tables, row["condition"], row["detector"])),
        )
        for row in tables.summary
    )
    return Table(
        "Means over generated sets, each against all photographs",
        tuple(columns),
        tuple(tuple(row[n] for n in kept) for row in rows),
        "Audits: the mean AUC of the two classifiers on the same pairs, container and texture.",
    )


def audits_cell(pairs: Sequence[Row]) -> str:
    """Mean container and texture audit of some pairs, with their marks."""
    cells = []
    for name in ("container", "texture"):
        values = [row[name] for row in pairs if row[name] is not None]
        mark = f" ({_MARKS[name]})" if any(name in row["marked"].split() for row in pairs) else ""
        cells.append((f"{sum(values) / len(values):.3f}" if values else "-") + mark)
    return " / ".join(cells)


def _pairs(tables: Tables, condition: str, entry: str) -> list[Row]:
    """Those of an entry in a condition that are against all photographs and have a number."""
    return [
        row
        for row in tables.pairs
        if (row["condition"], row["detector"], row["real"]) == (condition, entry, ALL)
        and row["auc"] is not None
    ]


def condition_tables(tables: Tables, condition: str, entry: str) -> list[Table]:
    """All numbers against all photographs, and the AUC against each photographic set."""
    pairs = [row for row in tables.pairs if (row["condition"], row["detector"]) == (condition, entry)]
    if all(row["auc"] is None for row in pairs):
        return []
    full = tuple(
        (
            row["generated"],
            f"{row['n_generated']} / {row['n_real']}",
            interval(row, "auc"),
            number(row["ap"]),
            number(row["tpr_at_1"]),
            number(row["tpr_at_5"]),
            number(row["accuracy"]),
            percent(row, "found"),
            interval(row, "container") + _mark(row, "container"),
            interval(row, "texture") + _mark(row, "texture"),
        )
        for row in pairs
        if row["real"] == ALL
    )
    reals = _names(pairs, "real")
    cells = {(row["generated"], row["real"]): interval(row, "auc") + _mark(row) for row in pairs}
    matrix = tuple((name, *(cells[name, real] for real in reals)) for name in _names(pairs, "generated"))
    marked = sum(bool(row["marked"]) for row in pairs)
    verdict = (
        f"**Marked: {marked} of {len(pairs)} rows.** (f): the container alone, no pixel seen, reaches an AUC "
        f"above {AUDIT_LIMIT}: file format may explain the row. (t): high-pass statistics of the pixels do: fine "
        "detail differs between the sets, by resampling and compression, or because one is generated."
        if marked
        else f"No row is marked: neither audit is above {AUDIT_LIMIT}."
    )
    return [
        Table(f"{entry}, {condition}: against all photographs", _PAIR_HEADER, full),
        Table(
            f"{entry}, {condition}: AUC against each photographic set", ("generated", *reals), matrix, verdict
        ),
    ]


def flagged_table(tables: Tables) -> Table:
    """Share of each photographic set flagged, without delivery steps."""
    rows = tuple(
        (
            row["detector"],
            row["condition"],
            row["real"],
            str(row["n"]),
            str(sum(row[reason] for reason in (*REASONS, NO_SCORE))),
            percent(row, "false_alarms"),
        )
        for row in tables.photographs
        if not is_delivery(row["condition"])
    )
    return Table(
        "Photographs flagged", ("detector", "condition", "photographs", "n", "no score", "flagged %"), rows
    )


def delivery_tables(tables: Tables) -> list[Table]:
    """Per entry: AUC of each generated set against all photographs, and false alarms, step by step."""
    made = []
    for entry in _names(tables.summary, "detector"):
        pairs = [
            row
            for row in tables.pairs
            if row["detector"] == entry and row["real"] == ALL and _in_delivery(row["condition"])
        ]
        alarms = {
            (row["condition"], row["real"]): row for row in tables.photographs if row["detector"] == entry
        }
        conditions = _names(pairs, "condition")
        if not any(map(is_delivery, conditions)):
            continue
        fakes, reals = _names(pairs, "generated"), _names(tables.photographs, "real")
        cells = {(row["condition"], row["generated"]): number(row["auc"]) for row in pairs}
        rows = tuple(
            (
                condition.removeprefix("delivery/"),
                *(cells[condition, fake] for fake in fakes),
                *(_share(alarms[condition, real]) for real in reals),
            )
            for condition in conditions
        )
        header = ("step", *(f"AUC {name}" for name in fakes), *(f"flagged % {name}" for name in reals))
        note = f"Audits of the equalised pictures: {audits_cell(_pairs(tables, EQUALISED, entry))}."
        made.append(Table(f"{entry}: step by step", header, rows, note))
    return made


def comparison_table(tables: Tables) -> Table:
    """The first detector against each other one, on the same pictures."""
    rows = tuple(
        (
            row["condition"],
            f"{row['detector']} - {row['other']}",
            row["generated"],
            f"{row['n_generated']} / {row['n_real']}",
            interval(row, "difference"),
            number(row["p_value_holm"]),
            number(row["p_accuracy_holm"]),
        )
        for row in tables.comparisons
    )
    header = ("condition", "detectors", "generated", "n", "difference of AUC", "p, AUC", "p, accuracy")
    conditions = _names(tables.comparisons, "condition")
    first = tables.comparisons[0]["detector"]
    audits = (f"{name} {audits_cell(_pairs(tables, name, first))}" for name in conditions)
    return Table("Paired comparisons, against all photographs", header, rows, f"Audits: {'; '.join(audits)}.")


def _introduction(manifest: Row) -> str:
    halves = (
        "Half of each photographic set, chosen by a hash of the source (of the picture's name where a "
        f"set has fewer than {metrics.MIN_GROUPS} sources), fits what is fitted here and sets its "
        "thresholds; all numbers are of the other half."
        if manifest["reference"]
        else "All photographs are measured: nothing was fitted or calibrated on them."
    )
    return (
        "Generated is the positive class; higher scores are more anomalous; an AUC of 0.5 is chance, and "
        "below 0.5 generated faces look *more* like photographs than photographs do. Brackets hold 95 % "
        "intervals, by whole sources where a set names enough of them; they say nothing of "
        f"generators and photographs unlike these. {halves} Accuracy is at a nominal "
        f"{100 * manifest['alpha']:g} % of photographs flagged and leans to the larger class. "
        "`(refitted)`: the same features under a density fitted to the photographic set that stands "
        "beside it. Pictures without a score are counted in pairs.csv and photographs.csv, with the "
        "reason; `seen` are those that a detector was made from, `no_score` those for which it gave none.\n\n"
        "Each number stands beside two audits: the AUC of classifiers, trained on these very pictures by "
        "cross-validation, sources kept whole, that see the container alone (size, codec, tables, chroma, length), "
        "and high-pass statistics alone. "
        f"Above {AUDIT_LIMIT} the row is marked."
    )


def _flagged_text(manifest: Row) -> str:
    return (
        f"At a nominal {100 * manifest['alpha']:g} %; intervals by whole sources where a set names enough of them, "
        "else Wilson's. A bundle keeps the threshold of its own calibration; what is refitted takes it from the "
        "reference half: in `published` from the photographs that were fitted, as the paper did, which promises "
        "nothing about others, and otherwise by conformal calibration on photographs kept apart."
    )


_DELIVERY_TEXT = (
    "What sites do to a picture afterwards, done to the equalised ones; thresholds stay as they were. A "
    "detector of cameras should keep both columns steady; where false alarms rise, it takes the delivery "
    "for an anomaly."
)
_MEANING = """\
- Where the container audit is high, an AUC may be that of a format: the row says nothing about the detector.
- An AUC above 0.5 under `equalised`, where the container says nothing, is seen in the pixels. Whether it is the
  camera, the generator or the way that a picture was delivered, no single row tells: compare generated sets that
  came the same way as the photographs, and look at what is flagged of the photographic sets.
- A low number under `equalised` is no proof that nothing can be seen: equalising wears off traces.
- Other generators, other photographs and other ways of delivery will give other numbers; an interval covers other
  samples of the same kind of pictures only.
- A threshold holds for photographs like those that it was calibrated on.
- Nothing here makes a score a proof about one picture.
"""
_COMPARISON_TEXT = (
    "On the same pictures, resampled together; p-values two-sided, by the paired bootstrap (AUC) and "
    "McNemar's exact test (accuracy), adjusted by Holm within a condition."
)


def _plots(folder: Path, tables: Tables) -> list[tuple[str, str]]:
    """Draw what there is to draw; returns alternative texts and file names."""
    from lensborn.bench import plots  # noqa: PLC0415

    drawn = []
    folder.mkdir(parents=True, exist_ok=True)
    for condition in _names(tables.summary, "condition"):
        rows = [
            row
            for row in tables.pairs
            if row["condition"] == condition and row["real"] == ALL and row["auc"] is not None
        ]
        file = f"auc-{condition}.svg"
        plots.auc_plot(rows, folder / file)
        drawn.append((f"AUC of each generated set, {condition}", file))
    pairs = [row for row in tables.pairs if row["family"] and row["auc"] is not None]
    alarms = [row for row in tables.photographs if row["family"] and row["false_alarms"] is not None]
    for number_, entry in enumerate(_names(pairs, "detector"), start=1):
        file = f"delivery-{number_}.svg"
        rows = [row for row in [*pairs, *alarms] if row["detector"] == entry]
        plots.delivery_plot(rows, folder / file)
        drawn.append((f"Delivery: AUC and false alarms of {entry}", file))
    return drawn


def _in_delivery(condition: str) -> bool:
    return is_delivery(condition) or condition == EQUALISED


def _share(row: Row) -> str:
    return "-" if row["false_alarms"] is None else f"{100 * row['false_alarms']:.1f}"


def _mark(row: Row, name: str | None = None) -> str:
    marks = [_MARKS[mark] for mark in row["marked"].split() if name in (None, mark)]
    return f" ({', '.join(marks)})" if marks else ""


def _names(rows: Iterable[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
