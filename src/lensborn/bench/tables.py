"""From judgements to rows: each generated set against each photographic set and against all of them.

Every row carries two audits of the same pictures: what a classifier reaches that sees the container alone, and one
that sees high-pass statistics alone (see `bench.audit`). A row whose audit is above AUDIT_LIMIT is marked.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensborn.bench import metrics
from lensborn.bench.audit import audit, container_features
from lensborn.bench.delivery import STEPS
from lensborn.bench.judging import (
    ALL,
    TEST,
    Entry,
    Judgement,
    Refit,
    judge,
    members,
    originals,
    parts_of,
)
from lensborn.bench.observing import Observed
from lensborn.bench.protocols import EQUALISED, REASONS, SIDES, is_delivery

AUDIT_LIMIT = 0.6
NO_SCORE = "no_score"

Row = dict[str, Any]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Tables:
    """All rows of a benchmark; a number is None where too few pictures have a score.

    `pairs`: entry x condition x generated x photographs. `photographs`: entry x condition x set of photographs, the
    share flagged. `summary`: entry x condition. `comparisons`: the first entry against each other.
    """

    pairs: list[Row]
    photographs: list[Row]
    summary: list[Row]
    comparisons: list[Row]


class Judged:
    """Judgements of every entry, made when first asked for; refitting takes a second each."""

    def __init__(self, observed: Observed, *, reference: bool, alpha: float, refit: Refit) -> None:
        """Judge `observed`, at a nominal share `alpha` of photographs flagged; see `judging.judge`."""
        self.observed = observed
        self.originals = originals(observed.pictures, observed.sha256)
        self.parts = parts_of(observed.pictures, reference, self.originals)
        self._settings: Mapping[str, Any] = {"alpha": alpha, "refit": refit}
        self._made: dict[tuple[str, str, str], Judgement | None] = {}

    def __call__(self, entry: Entry, condition: str, real: str) -> Judgement | None:
        """What the entry says in the condition, against the photographs of the set `real`."""
        key = entry.name, condition, real
        if key not in self._made:
            self._made[key] = judge(entry, self.observed, condition, real, self.parts, **self._settings)
        return self._made[key]

    def real_sets(self) -> list[str]:
        """The photographic sets, then ALL of them together where there are several."""
        names = list(dict.fromkeys(p.set for p in self.observed.pictures if p.label == "real"))
        return [*names, ALL] if len(names) > 1 else [ALL]

    def fake_sets(self) -> list[str]:
        """The generated sets."""
        return list(dict.fromkeys(p.set for p in self.observed.pictures if p.label == "fake"))

    def measured(self, name: str) -> Bools:
        """Which pictures of a set are measured, whether or not they have a score."""
        return np.asarray(members(self.observed.pictures, name) & (self.parts == TEST))


def make_tables(
    judged: Judged,
    entries: Sequence[Entry],
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Tables:
    """All rows; `progress` is called with the rows done and their number."""
    conditions = list(judged.observed.conditions)
    audits = Audits(judged, seed)
    wanted = [
        (entry, condition, fake, real)
        for condition in conditions
        for entry in entries
        if not (entry.refitted and is_delivery(condition))
        for fake in judged.fake_sets()
        for real in ([ALL] if is_delivery(condition) else judged.real_sets())
    ]
    pairs = []
    for done, (entry, condition, fake, real) in enumerate(wanted, start=1):
        pairs.append(pair(judged, audits, entry, condition, fake, real, seed))
        progress(done, len(wanted))
    photographs = [
        _photographs(judged, entry, condition, real)
        for condition in conditions
        for entry in entries
        if not (entry.refitted and is_delivery(condition))
        for real in judged.real_sets()
    ]
    main = [condition for condition in conditions if not is_delivery(condition)]
    summary = [_summary(judged, entry, condition, seed) for condition in main for entry in entries]
    comparisons = [row for condition in main for row in _comparisons(judged, entries, condition, seed)]
    return Tables(pairs, photographs, [row for row in summary if row], comparisons)


class Audits:
    """Both audits of two sets in a condition, each made once: they do not depend on the entry."""

    def __init__(self, judged: Judged, seed: int) -> None:
        """Audit the pictures that `judged` measures."""
        self._judged, self._seed = judged, seed
        self._made: dict[tuple[str, str, str], Row] = {}

    def __call__(self, condition: str, fake: str, real: str) -> Row:
        """Columns container and texture, each with low and high, and `marked`: "", or which is too high.

        A delivered picture has the audit of the equalised one that it was made from.
        """
        key = EQUALISED if is_delivery(condition) else condition, fake, real
        if key not in self._made:
            self._made[key] = self._audit(*key)
        return self._made[key]

    def _audit(self, condition: str, fake: str, real: str) -> Row:
        seen = self._judged.observed.conditions[condition]
        there = np.array([container is not None for container in seen.containers])
        real_rows, fake_rows = (np.flatnonzero(self._judged.measured(name) & there) for name in (real, fake))
        rows = [*real_rows, *fake_rows]
        containers = [container for n in rows if (container := seen.containers[n]) is not None]
        units = [
            metrics.units_of(_sets(self._judged, some), _groups(self._judged, some))
            for some in (real_rows, fake_rows)
        ]
        features = {"container": container_features(containers), "texture": seen.texture[rows]}
        row: Row = {}
        marks = []
        for name, values in features.items():
            real_values, fake_values = values[: len(real_rows)], values[len(real_rows) :]
            found = audit(real_values, fake_values, *units, seed=self._seed) if rows else None
            row |= _flat(name, found)
            marks += [name] * (found is not None and found.value > AUDIT_LIMIT)
        return {**row, "marked": " ".join(marks)}


def pair(
    judged: Judged, audits: Audits, entry: Entry, condition: str, fake: str, real: str, seed: int
) -> Row:
    """A generated set against photographs; pictures without a score are those of the generated set."""
    judgement = judged(entry, condition, real)
    fakes, reals = judged.measured(fake), judged.measured(real)
    found: Mapping[str, metrics.Interval] = {}
    n_fake = n_real = 0
    if judgement is not None:
        there = np.isfinite(judgement.scores)
        real_rows, fake_rows = np.flatnonzero(reals & there), np.flatnonzero(fakes & there)
        n_fake, n_real = len(fake_rows), len(real_rows)
        if n_fake and n_real:
            found = metrics.measures(
                judgement.scores[real_rows],
                judgement.scores[fake_rows],
                judgement.threshold,
                **_clusters(judged, real_rows, fake_rows),
                seed=seed,
            )
    row: Row = {
        "detector": entry.name,
        "condition": condition,
        **_delivery(condition),
        "generated": fake,
        "real": real,
        "n_generated": n_fake,
        "n_real": n_real,
        **_missing(judged, judgement, condition, fakes),
        "enlarged": _enlarged(judged, condition, fakes),
    }
    for name in metrics.MEASURES:
        row |= _flat(name, _kept(name, found, judgement))
    return row | audits(condition, fake, real)


def _photographs(judged: Judged, entry: Entry, condition: str, real: str) -> Row:
    judgement = judged(entry, condition, real)
    rows = judged.measured(real)
    there = rows & np.isfinite(judgement.scores) if judgement else np.zeros_like(rows)
    n = int(there.sum())
    row: Row = {"detector": entry.name, "condition": condition, **_delivery(condition), "real": real, "n": n}
    row |= _missing(judged, judgement, condition, rows) | {"enlarged": _enlarged(judged, condition, rows)}
    if judgement is None or not n or not math.isfinite(judgement.threshold):
        return row | {"flagged": None, **_flat("false_alarms", None)}
    chosen = np.flatnonzero(there)
    flagged = judgement.scores[chosen] >= judgement.threshold
    share = metrics.rate(flagged, strata=_sets(judged, chosen), groups=_groups(judged, chosen))
    return row | {"flagged": int(flagged.sum()), **_flat("false_alarms", share)}


def _summary(judged: Judged, entry: Entry, condition: str, seed: int) -> Row | None:
    """Means over the generated sets, each against all photographs; None where nothing can be compared."""
    judgement = judged(entry, condition, ALL)
    if judgement is None:
        return None
    there = np.isfinite(judgement.scores)
    real_rows = np.flatnonzero(judged.measured(ALL) & there)
    fake_rows = {name: np.flatnonzero(judged.measured(name) & there) for name in judged.fake_sets()}
    fake_rows = {name: rows for name, rows in fake_rows.items() if len(rows)}
    if not fake_rows or not len(real_rows):
        return None
    scores = judgement.scores
    over = metrics.over_sets(
        scores[real_rows],
        {name: scores[rows] for name, rows in fake_rows.items()},
        judgement.threshold,
        **_clusters(judged, real_rows, None),
        fake_groups={name: _groups(judged, rows) for name, rows in fake_rows.items()},
        seed=seed,
    )
    row: Row = {"detector": entry.name, "condition": condition, "generators": len(fake_rows)}
    for kind, found in (("macro", over.macro), ("micro", over.micro)):
        for name in metrics.MEASURES:
            row |= _flat(f"{kind}_{name}", _kept(name, found, judgement))
    worst, interval = over.worst
    return row | {"worst": worst, **_flat("worst_auc", interval)}


def _comparisons(judged: Judged, entries: Sequence[Entry], condition: str, seed: int) -> list[Row]:
    """The first entry against each other one, on the pictures that both scored; p-values by Holm."""
    rows: list[Row] = []
    for one, other in itertools.product(entries[:1], entries[1:]):
        a, b = judged(one, condition, ALL), judged(other, condition, ALL)
        if a is None or b is None:
            continue
        there = np.isfinite(a.scores) & np.isfinite(b.scores)
        real_rows = np.flatnonzero(judged.measured(ALL) & there)
        for fake in judged.fake_sets():
            fake_rows = np.flatnonzero(judged.measured(fake) & there)
            if not len(real_rows) or not len(fake_rows):
                continue
            found = metrics.paired(
                a.scores[real_rows],
                a.scores[fake_rows],
                b.scores[real_rows],
                b.scores[fake_rows],
                **_clusters(judged, real_rows, fake_rows),
                seed=seed,
            )
            rows.append(
                {
                    "condition": condition,
                    "detector": one.name,
                    "other": other.name,
                    "generated": fake,
                    "n_generated": len(fake_rows),
                    "n_real": len(real_rows),
                    "difference": found.difference,
                    "difference_low": found.low,
                    "difference_high": found.high,
                    "p_value": found.p_value,
                    "p_accuracy": _p_accuracy(judged, a, b, real_rows, fake_rows),
                }
            )
    for name in ("p_value", "p_accuracy"):
        known = [row for row in rows if row[name] is not None]
        adjusted = metrics.holm([row[name] for row in known])
        for row in rows:
            row[f"{name}_holm"] = None
        for row, value in zip(known, adjusted, strict=True):
            row[f"{name}_holm"] = value
    return rows


def _p_accuracy(
    judged: Judged, a: Judgement, b: Judgement, real: NDArray[np.intp], fake: NDArray[np.intp]
) -> float | None:
    """See `metrics.equally_right`; None where either has no threshold."""
    if not (math.isfinite(a.threshold) and math.isfinite(b.threshold)):
        return None
    both = np.concatenate([real, fake])
    is_fake = np.arange(len(both)) >= len(real)
    right = [(said.scores[both] >= said.threshold) == is_fake for said in (a, b)]
    return metrics.equally_right(*right, strata=_sets(judged, both), groups=_groups(judged, both))


def score_rows(judged: Judged, entries: Sequence[Entry]) -> list[Row]:
    """A row a picture and condition: its part, and the score of every entry that judges as it comes.

    Pictures that a detector was made from have no row.
    """
    observed = judged.observed
    rows = []
    for condition, seen in observed.conditions.items():
        scores = {e.name: j.scores for e in entries if not e.refitted and (j := judged(e, condition, ALL))}
        for n, picture in enumerate(observed.pictures):
            if seen.reasons[n] == "seen":
                continue
            row: Row = {
                "condition": condition,
                "file": picture.name,
                "label": picture.label,
                "set": picture.set,
                "source": picture.source,
                "part": str(judged.parts[n]),
                "reason": seen.reasons[n],
                "crop_px": round(float(observed.sides[n]), 1),
                "sha256": observed.sha256[n],
            }
            values = {name: float(score[n]) for name, score in scores.items()}
            rows.append(
                row | {name: value if math.isfinite(value) else None for name, value in values.items()}
            )
    return rows


def _clusters(judged: Judged, real: NDArray[np.intp], fake: NDArray[np.intp] | None) -> dict[str, Any]:
    """How pictures are resampled: photographs set by set, and by source."""
    clusters: dict[str, Any] = {"real_strata": _sets(judged, real), "real_groups": _groups(judged, real)}
    return clusters if fake is None else clusters | {"fake_groups": _groups(judged, fake)}


def _sets(judged: Judged, rows: Iterable[int]) -> NDArray[np.str_]:
    return np.array([judged.observed.pictures[n].set for n in rows])


def _groups(judged: Judged, rows: Iterable[int]) -> NDArray[np.str_]:
    """The source of each picture; a picture of no known source is its own, with those of the same bytes."""
    pictures = [judged.originals[n] for n in rows]
    return np.array([f"s{p.source}" if p.source else f"p{p.set}/{p.name}" for p in pictures])


def _missing(judged: Judged, judgement: Judgement | None, condition: str, rows: Bools) -> Row:
    """Pictures without a score, by reason; NO_SCORE: the detector was shown it and gave none."""
    seen = judged.observed.conditions[condition].reasons
    reasons = [seen[n] for n in np.flatnonzero(rows)]
    scores = judgement.scores[rows] if judgement else np.zeros(len(reasons))
    silent = sum(reason is None and not math.isfinite(s) for reason, s in zip(reasons, scores, strict=True))
    return {reason: reasons.count(reason) for reason in REASONS} | {NO_SCORE: silent}


def _enlarged(judged: Judged, condition: str, rows: Bools) -> float | None:
    """Share of the crops that equalising enlarged; None where nothing was equalised."""
    if condition not in SIDES:
        return None
    seen = judged.observed.conditions[condition]
    sides = [judged.observed.sides[n] for n in np.flatnonzero(rows) if seen.reasons[n] is None]
    return float(np.mean(np.array(sides) < SIDES[condition])) if sides else None


def _delivery(condition: str) -> Row:
    if not is_delivery(condition):
        return {"family": None, "strength": None}
    step = STEPS[condition.removeprefix("delivery/")]
    return {"family": step.family, "strength": step.strength}


def _kept(
    name: str, found: Mapping[str, metrics.Interval], judgement: Judgement | None
) -> metrics.Interval | None:
    """A number, unless it hangs on a threshold for which there were too few photographs."""
    unknown = judgement is None or not math.isfinite(judgement.threshold)
    return None if unknown and name in metrics.AT_THRESHOLD else found.get(name)


def _flat(name: str, interval: metrics.Interval | None) -> Row:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    low, high = (None if math.isnan(limit) else limit for limit in interval[1:])
    return {name: interval.value, f"{name}_low": low, f"{name}_high": high}
