"""From scores to tables: each generated set against each real set and against all, with the format audit.

The audit asks what a classifier reaches that sees no pixels: cross-validated logistic regression on the
container's width, height, bytes a pixel, format and JPEG tables. Where it gets far, the row may measure file
format, and is marked. The same results give the same bytes in every file written here.
"""

import csv
import hashlib
import io
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lensborn
from lensborn.bench import metrics
from lensborn.bench.protocols import REASONS, Container, Result
from lensborn.calibration import clopper_pearson

AUDIT_LIMIT = 0.6  # a row whose container alone reaches this AUC is marked
AUDIT_MINIMUM = 10  # pictures of each class, for five folds to mean anything
ALL = "(all)"

Row = dict[str, Any]

_PACKAGES = ("numpy", "scipy", "scikit-learn", "openvino", "opencv-python-headless", "pillow")
_AVERAGED = ("auc", "ap", "tpr_at_1", "tpr_at_5", "accuracy", "balanced_accuracy", "flagged")
_MEASURES = ("auc", "auc_low", "auc_high", *_AVERAGED[1:])

GENERATOR_HEADER = (
    "generated", "real", "n", "no score", "AUC [95 %]", "AP", "TPR@1 %", "TPR@5 %", "accuracy", "balanced",
    "audit",
)  # fmt: skip
PHOTOGRAPH_HEADER = ("real", "n", "no score", "flagged", "false alarms [95 %]")

_PROTOCOL_NOTES = {
    "published": "Files as they are, whole pictures, the largest face. The audit sees width, height, bytes "
    "a pixel, format and the mean of the JPEG tables, and no pixels.",
    "equalised": "The largest face's crop, brought to one size and one JPEG quality; crops too small for it "
    "are left out. All that remains for the audit is the number of bytes, which follows from what the crop "
    "shows (its sharpness above all): the size of a crop before equalising is hidden from detector and "
    "audit. P-values come from the bundle's calibration, made without equalising: flagged shares are "
    "measured, not promised.",
}


@dataclass(frozen=True)
class Evaluation:
    """Everything an evaluation says; a number is None where too few pictures have a score."""

    manifest: Row
    generators: list[Row]
    photographs: list[Row]
    summary: Row


def audit(real: Sequence[Container], fake: Sequence[Container], seed: int = 0) -> float | None:
    """Mean AUC over five folds of a classifier that sees containers only; None with too few pictures."""
    if min(len(real), len(fake)) < AUDIT_MINIMUM:
        return None
    # scikit-learn takes a second to import, and only this needs it
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.model_selection import StratifiedKFold, cross_val_score  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler  # noqa: PLC0415

    containers = [*real, *fake]
    formats = sorted({c.format for c in containers})
    numbers = np.array([(c.width, c.height, c.size / (c.width * c.height)) for c in containers])
    tables = [[c.quantisation, *(c.format == name for name in formats)] for c in containers]
    features = np.hstack([np.log(numbers), np.array(tables, dtype=np.float64)])
    labels = np.repeat([0, 1], [len(real), len(fake)])
    # Squares and products, so that a size between two others can be told from both.
    model = make_pipeline(
        StandardScaler(), PolynomialFeatures(2, include_bias=False), LogisticRegression(max_iter=2000)
    )
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(model, features, labels, cv=folds, scoring="roc_auc")))


def evaluate(results: Sequence[Result], alpha: float, seed: int, manifest: Row) -> Evaluation:
    """The tables of an evaluation; `alpha`: a face is flagged when its p-value is at most that."""
    real, fake = _by_set(results, "real"), _by_set(results, "fake")
    pooled = [result for members in real.values() for result in members]
    against = {**real, ALL: pooled}
    generators = [
        {"generated": name, "real": other, **_generator_row(fakes, reals, alpha, seed)}
        for name, fakes in fake.items()
        for other, reals in against.items()
    ]
    photographs = [_photograph_row(name, members, alpha) for name, members in against.items()]
    return Evaluation(manifest, generators, photographs, _summary(generators))


def describe(
    results: Iterable[Result], *, model: Mapping[str, Any], protocol: str, seed: int, command: str
) -> Row:
    """The manifest: what was measured, on which bytes, by which versions; free of times and machine paths."""
    digest = hashlib.sha256()
    for result in results:
        picture = result.picture
        line = f"{picture.set}\t{picture.label}\t{picture.name}\t{result.sha256}\n"
        digest.update(line.encode("utf-8", "backslashreplace"))
    versions = {"lensborn": lensborn.__version__, "python": platform.python_version()}
    return {
        "command": command,
        "protocol": protocol,
        "seed": seed,
        "model": dict(model),
        "pictures_sha256": digest.hexdigest(),
        "bootstrap_replicates": metrics.REPLICATES,
        "versions": versions | {name: _version(name) for name in _PACKAGES},
    }


def write(folder: Path, evaluation: Evaluation, results: Iterable[Result]) -> list[Path]:
    """Write the report, tables, scores and manifest into a folder; returns their paths."""
    texts = {
        "generators.csv": _csv(evaluation.generators),
        "photographs.csv": _csv(evaluation.photographs),
        "scores.csv": _csv([_score_row(result, evaluation.manifest["model"]["alpha"]) for result in results]),
        "evaluation.json": json.dumps(_rounded(asdict(evaluation)), indent=2, allow_nan=False) + "\n",
        "report.md": markdown(evaluation),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        aside = folder / f".{name}.new"
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))
        aside.replace(folder / name)
    return [folder / name for name in texts]


def markdown(evaluation: Evaluation) -> str:
    """The report for people."""
    manifest, summary = evaluation.manifest, evaluation.summary
    model, note = manifest["model"], _PROTOCOL_NOTES[manifest["protocol"]]
    lines = [
        f"# Evaluation of {_escaped(model['name'])}, protocol {manifest['protocol']}",
        "",
        f"Generated is the positive class, higher scores are more anomalous. {note}",
        "",
        *_markdown_table(GENERATOR_HEADER, map(generator_cells, evaluation.generators)),
        "",
        f"{mark_line(manifest['protocol'])} Intervals are bootstrapped by source where a set names at least "
        f"{metrics.MIN_GROUPS} of them, by picture otherwise; they say nothing of generators and "
        f"photographs unlike these. Accuracy is at p <= {model['alpha']:g} and leans to the larger class; "
        "`balanced`, the mean over the two classes, does not. `no score` counts pictures without a face, "
        "unreadable, or left out as too small (of the generated set, in this table); generators.csv and "
        "photographs.csv say which.",
        "",
        "## Photographs flagged",
        "",
        *_markdown_table(PHOTOGRAPH_HEADER, map(photograph_cells, evaluation.photographs)),
        "",
        f"At p <= {model['alpha']:g}; exact (Clopper-Pearson) intervals, as if pictures were independent.",
        "",
        *map(_escaped, summary_lines(summary)),
        "",
        "## Manifest",
        "",
        "```json",
        json.dumps(_rounded(manifest), indent=2),
        "```",
    ]
    return "\n".join(lines) + "\n"


def summary_lines(summary: Row) -> list[str]:
    """The mean over generators and the worst of them, in words."""
    if not summary["generators"]:
        return ["No generated set could be compared with photographs: too few pictures have a score."]
    return [
        f"Mean over {summary['generators']} generated set(s), each against all photographs: "
        f"AUC {_f(summary['auc'])}, AP {_f(summary['ap'])}, TPR {_f(summary['tpr_at_1'])} at 1 % and "
        f"{_f(summary['tpr_at_5'])} at 5 % false alarms, balanced accuracy "
        f"{_f(summary['balanced_accuracy'])}. "
        f"Worst: {summary['worst']}, AUC {_f(summary['worst_auc'])}."
    ]


def mark_line(protocol: str) -> str:
    """What the mark of a row means."""
    means = {"published": "file format", "equalised": "how sharp or busy the pictures are"}[protocol]
    return (
        f"(!) The container alone tells the two sets apart with an AUC above {AUDIT_LIMIT} (a rough number "
        f"with fewer than a hundred pictures each): the row may measure {means}."
    )


def generator_cells(row: Row) -> list[str]:
    """A row of GENERATOR_HEADER as text."""
    mark = " (!)" if row["marked"] else ""
    return [
        row["generated"], row["real"], f"{row['n_generated']} / {row['n_real']}", str(_missing(row)),
        f"{_f(row['auc'])} [{_f(row['auc_low'])}, {_f(row['auc_high'])}]",
        *(_f(row[key]) for key in ("ap", "tpr_at_1", "tpr_at_5", "accuracy", "balanced_accuracy")),
        _f(row["audit"]) + mark,
    ]  # fmt: skip


def photograph_cells(row: Row) -> list[str]:
    """A row of PHOTOGRAPH_HEADER as text."""
    interval = f"{_f(row['false_alarms'])} [{_f(row['low'])}, {_f(row['high'])}]"
    return [row["real"], str(row["n"]), str(_missing(row)), str(row["flagged"]), interval]


def _by_set(results: Iterable[Result], label: str) -> dict[str, list[Result]]:
    sets: dict[str, list[Result]] = {}
    for result in results:
        if result.picture.label == label:
            sets.setdefault(result.picture.set, []).append(result)
    return sets


def _scored(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result.measured.reason is None]


def _column(results: Sequence[Result], name: str) -> NDArray[np.float64]:
    return np.array([getattr(result.measured, name) for result in results], dtype=np.float64)


def _reasons(results: Sequence[Result]) -> Row:
    return {reason: sum(result.measured.reason == reason for result in results) for reason in REASONS}


def _groups(results: Sequence[Result]) -> NDArray[np.str_]:
    """The source of each picture; a picture of no known source is its own."""
    return np.array([f"s{r.picture.source}" if r.picture.source else f"p{r.picture.name}" for r in results])


def _generator_row(fakes: Sequence[Result], reals: Sequence[Result], alpha: float, seed: int) -> Row:
    """One generated set against photographs; counts without a score are those of the generated set."""
    fake, real = _scored(fakes), _scored(reals)
    values: Sequence[float | None] = [None] * len(_MEASURES)
    if fake and real:
        pair = _column(real, "score"), _column(fake, "score")
        at_alpha = -_column(real, "p_value"), -_column(fake, "p_value"), -alpha
        values = [
            metrics.auc(*pair),
            *metrics.bootstrap(
                metrics.auc_of,
                *pair,
                real_strata=np.array([result.picture.set for result in real]),
                real_groups=_groups(real),
                fake_groups=_groups(fake),
                seed=seed,
            ),
            metrics.average_precision(*pair),
            *(metrics.tpr_at_fpr(*pair, fpr) for fpr in (0.01, 0.05)),
            metrics.accuracy(*at_alpha),
            metrics.balanced_accuracy(*at_alpha),
            metrics.false_alarm_rate(*at_alpha[1:]),  # the share flagged, here of fakes
        ]
    container_auc = audit(_containers(real), _containers(fake), seed)
    return {
        "n_generated": len(fake),
        "n_real": len(real),
        **_reasons(fakes),
        **dict(zip(_MEASURES, values, strict=True)),
        "audit": container_auc,
        "marked": container_auc is not None and container_auc > AUDIT_LIMIT,
    }


def _containers(results: Iterable[Result]) -> list[Container]:
    return [result.measured.container for result in results if result.measured.container]


def _photograph_row(name: str, results: Sequence[Result], alpha: float) -> Row:
    scored = _scored(results)
    flagged = int(np.sum(_column(scored, "p_value") <= alpha))
    rates: Sequence[float | None] = [None, None, None]
    if scored:
        rates = [flagged / len(scored), *clopper_pearson(flagged, len(scored))]
    rate, low, high = rates
    return {
        "real": name, "n": len(scored), **_reasons(results), "flagged": flagged,
        "false_alarms": rate, "low": low, "high": high,
    }  # fmt: skip


def _summary(generators: Iterable[Row]) -> Row:
    """Means over the generated sets, each against all photographs and counting alike, and the worst set."""
    rows = [row for row in generators if row["real"] == ALL and row["auc"] is not None]
    if not rows:
        return {"generators": 0}
    worst = min(rows, key=lambda row: row["auc"])
    means = {key: float(np.mean([row[key] for row in rows])) for key in _AVERAGED}
    return {"generators": len(rows), **means, "worst": worst["generated"], "worst_auc": worst["auc"]}


def _score_row(result: Result, alpha: float) -> Row:
    picture, measured = result.picture, result.measured
    scored = measured.reason is None
    container = measured.container
    fields: Row = asdict(container) if container else dict.fromkeys(Container.__dataclass_fields__)
    return {
        "file": picture.name,
        "label": picture.label,
        "set": picture.set,
        "source": picture.source,
        "reason": measured.reason,
        "score": measured.score if scored else None,
        "p_value": measured.p_value if scored else None,
        "flagged": int(measured.p_value <= alpha) if scored else None,
        **fields,
        "sha256": result.sha256,
    }


def _missing(row: Row) -> int:
    return int(sum(row[reason] for reason in REASONS))


def _f(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {key: f"{item:.6f}" if isinstance(item, float) else item for key, item in row.items()}
        writer.writerow(cells)
    return stream.getvalue()


def _rounded(value: Any) -> Any:
    """Numbers to six decimals: beyond that a result can depend on the processor."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _escaped(text: str) -> str:
    return "".join("\\" + c if c in "\\`*_[]<>|#" else c for c in text.replace("\n", " "))


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    return [line(header), line("---" for _ in header), *(line(map(_escaped, row)) for row in rows)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
