"""The numbers of the known channel, as rows: what `known.py measure` measures of channels that left something out.

A row says its `table`, and in most of them the `condition` under which faces were seen; `known_page.py` makes
tables of them.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from known_looks import (
    EQUALISED,
    HALVES,
    LEVELS,
    PHOTOS,
    SCORES,
    Conditions,
    Floats,
    Look,
    look,
    photographs,
    placed,
    values_of,
)
from PIL import Image
from rich.progress import track

from lensborn import defaults
from lensborn.bench.conditional import Conditional
from lensborn.bench.delivery import STEPS
from lensborn.bench.metrics import Interval, measures, rate
from lensborn.calibration import Conformal
from lensborn.datasets.corpus import split_of
from lensborn.datasets.pictures import Picture
from lensborn.detector import Detector, half_of
from lensborn.known_head import KnownHead
from lensborn.photo import digest_of
from lensborn.signs import HANDICAP
from lensborn.teach import LEAST, Lesson, Studied, known_of, study, teach

ALPHA = defaults.ALPHA
OWN_PHOTOGRAPHS = 200  # taught of a photographic set that was left out
#: What a channel was shown of a photographic set before it judged the set, or what is left of it.
SHOWN = ("none", "60 %", "none; others of it", f"{OWN_PHOTOGRAPHS} taught; others of it")
HANDICAPS = (0.0, 0.5, 1.0, 1.5)  # of faces unlike photographs, against those like generated ones
MARGINS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4)  # for photographs of populations that are not known
BINS = 8  # of a reliability diagram
DAMAGES = (
    *("jpeg-95", "jpeg-75", "jpeg-50", "resize-75", "resize-50", "resize-25"),
    *("blur-0.5", "blur-1", "blur-2"),
)
Row = dict[str, Any]


def generator_rows(
    detector: Detector, name: str, judged: Sequence[Picture], folder: Path, conditions: Conditions
) -> list[Row]:
    """Rows about a generator that was left out."""
    pictures, references = [*judged, *photographs(folder, "test")], photographs(folder, "calibrate")
    rows: list[Row] = []
    for condition, place in conditions.items():
        mine, reference = (
            look(detector, placed(some, place), f"{condition}, {name}") for some in (pictures, references)
        )
        found = auc_rows(mine, name) + flagged_rows(mine, name) + reliability_rows(mine, name)
        found += sign_rows(mine, name) + margin_rows(known_of(detector).head, mine, name)
        found += conditional_rows(mine, reference, name)
        rows += [{"condition": condition, **row} for row in found]
    rows += damage_rows(detector, placed(judged, conditions[EQUALISED]), name)
    return rows + taught_rows(detector, judged, name)


def real_groups(looks: Sequence[Look]) -> dict[str, list[str]]:
    """The photographic sets by name, and those of faces.csv together."""
    sets = sorted({one.picture.set for one in looks if one.picture.label == "real"})
    together = [name for name in sets if name != PHOTOS]
    return {" + ".join(together): together, **{name: [name] for name in sets}}


def auc_rows(looks: Sequence[Look], name: str) -> list[Row]:
    """AUC of the generator against each photographic set, and against three of them together."""
    rows = []
    for channel, score in SCORES.items():
        fake = values_of(looks, [name], score)
        for label, sets in real_groups(looks).items():
            real = values_of(looks, sets, score)
            auc = measures(real, fake, threshold=0.0)["auc"]
            row = {"channel": channel, "set": name, "against": label, "n": len(fake), "n_against": len(real)}
            rows.append({"table": "auc", **row, **_interval(auc)})
    return rows


def sign_rows(looks: Sequence[Look], name: str) -> list[Row]:
    """AUC of the generator by either sign, and by the greater of the two with several handicaps."""
    ways: dict[str, Callable[[Look], float]] = {
        "like generated faces": lambda one: one.signs[0],
        "unlike photographs": lambda one: one.signs[1],
    }
    for handicap in HANDICAPS:
        ways[f"greater, handicap {handicap:g}"] = lambda one, less=HANDICAP - handicap: max(
            one.signs[0], one.signs[1] + less
        )
    together = next(iter(real_groups(looks).values()))
    return [
        {
            "table": "signs",
            "way": way,
            **_interval(measures(values_of(looks, together, of), values_of(looks, [name], of), 0.0)["auc"]),
        }
        for way, of in ways.items()
    ]


def flagged_rows(looks: Sequence[Look], name: str) -> list[Row]:
    """Shares flagged at ALPHA, set by set."""
    rows = []
    for channel, level in LEVELS.items():
        single = [label for label, sets in real_groups(looks).items() if [label] == sets]
        for pictures in dict.fromkeys([name, *single]):
            flagged = values_of(looks, [pictures], level) <= ALPHA
            row = {"channel": channel, "set": pictures, "n": len(flagged)}
            rows.append({"table": "flagged", **row, **_interval(rate(flagged))})
    return rows


def margin_rows(head: KnownHead, looks: Sequence[Look], name: str) -> list[Row]:
    """Shares of what was left out that the verdict flags at ALPHA, with several margins."""
    mine = [one for one in looks if one.picture.set == name]
    known = [(one.known.score, one.score) for one in mine if one.known]
    alone = [LEVELS["verdict"](one) for one in mine if not one.known]
    rows = []
    for margin in MARGINS:
        p_values = replace(head, margin=margin).fused_p(*zip(*known, strict=True))
        share = rate(np.append(p_values, alone) <= ALPHA)
        rows.append({"table": "margins", "margin": margin, "set": name, "n": len(mine), **_interval(share)})
    return rows


def by_digest(pictures: Iterable[Picture]) -> list[Picture]:
    """Pictures in an order that says nothing of them, the same on every machine."""
    return sorted(pictures, key=lambda picture: digest_of(picture.path))


def unseen_rows(
    detector: Detector,
    pictures: Sequence[Picture],
    conditions: Conditions,
) -> list[Row]:
    """Shares flagged of a photographic set left out; and of what is left of it without OWN_PHOTOGRAPHS, before and
    after these were taught."""
    name = pictures[0].set
    pictures = by_digest(pictures)
    own, others = pictures[:OWN_PHOTOGRAPHS], pictures[OWN_PHOTOGRAPHS:]
    faces = track(study([picture.path for picture in own], detector), name, total=len(own))
    lesson = Lesson(name, False, tuple(face for face in faces if face is not None), 0)
    taught = detector.with_known(teach(known_of(detector), [lesson])[0])
    left = {picture.name for picture in others}
    rows = []
    for condition, place in conditions.items():
        before = look(detector, placed(pictures, place), f"{condition}, {name}")
        after = look(taught, placed(others, place), f"{condition}, {name}, taught")
        none, _, same, told = SHOWN
        for shown, looks in (
            (none, before),
            (same, [one for one in before if one.picture.name in left]),
            (told, after),
        ):
            for row in flagged_rows(looks, name):
                rows.append({**row, "table": "unseen", "condition": condition, "shown": shown})
        margins = margin_rows(known_of(detector).head, before, name)
        rows += [{**row, "condition": condition} for row in margins]
    return rows


def unseen_pair_rows(detector: Detector, pictures: Sequence[Picture], conditions: Conditions) -> list[Row]:
    """AUC of a generator against a photographic set, where both were left out."""
    (generator,) = {picture.set for picture in pictures if picture.label == "fake"}
    rows = []
    for condition, place in conditions.items():
        looks = look(detector, placed(pictures, place), f"{condition}, {generator}")
        rows += [{**row, "table": "unseen auc", "condition": condition} for row in auc_rows(looks, generator)]
    return rows


def reliability_rows(looks: Sequence[Look], name: str) -> list[Row]:
    """How often a face was generated, bin by bin of the probability given; both classes weigh the same.

    Other faces of the generators that were shown helped to choose the epoch, and nothing else.
    """
    rows = []
    seen = sorted({one.picture.set for one in looks if one.picture.label == "fake"} - {name})
    for kind, sets in (("shown, other faces", seen), ("left out", [name])):
        there = [
            one for one in looks if one.known and (one.picture.label == "real" or one.picture.set in sets)
        ]
        probability = np.array([one.known.probability for one in there if one.known])
        fake = np.array([one.picture.label == "fake" for one in there])
        weights = np.where(fake, 1 / max(fake.sum(), 1), 1 / (~fake).sum())
        for number, members in enumerate(np.array_split(np.argsort(probability, kind="stable"), BINS)):
            mine = weights[members]
            given, was = (float(np.average(x[members], weights=mine)) for x in (probability, fake))
            row = {
                "kind": kind,
                "bin": number,
                "n": len(members),
                "given": round(given, 4),
                "was": round(was, 4),
            }
            rows.append({"table": "reliability", **row})
    return rows


def conditional_rows(looks: Sequence[Look], reference: Sequence[Look], name: str) -> list[Row]:
    """False alarms and AUC under three calibrations of both channels, on sets that none of them saw.

    The photographs of the corpus's "calibrate" sources are the reference, for the first channel those that its
    density was not fitted to; a regression on traits of delivery learns from half of them, by source, and the other
    half calibrates what is left of the score.
    """
    for_fit = np.array(
        [split_of(f"conditional/{one.picture.source}", HALVES) == "judge" for one in reference]
    )
    rows = []
    for channel in ("one-class", "known"):
        score, level = SCORES[channel], LEVELS[channel]
        usable = np.array(
            [
                np.isfinite(score(one)) and (channel == "known" or half_of(one.picture.source) == "calibrate")
                for one in reference
            ]
        )
        scores = np.array([score(one) for one in reference])
        traits = np.stack([one.traits for one in reference])
        fit, rest = for_fit & usable, ~for_fit & usable
        plain = Conformal.fit(scores[usable])
        conditional = Conditional.fit(scores[fit], traits[fit])
        left = Conformal.fit(conditional.standardise(scores[rest], traits[rest]))
        explained = 1 - float(
            np.var(conditional.residuals(scores[rest], traits[rest])) / np.var(scores[rest])
        )

        def standardised(one: Look, score: Any = score, conditional: Conditional = conditional) -> float:
            value = score(one)
            return value if np.isnan(value) else float(conditional.standardise([value], one.traits[None])[0])

        ways: dict[str, tuple[Callable[[Look], float], Callable[[Look], float]]] = {
            "corpus alone": (score, lambda one, s=score, c=plain: _p(c, s(one))),
            "as shipped": (score, level),
            "given delivery": (standardised, lambda one, s=standardised, c=left: _p(c, s(one))),
        }
        for way, (ranking, p_value) in ways.items():
            fake = values_of(looks, [name], ranking)
            for label, sets in real_groups(looks).items():
                auc = _auc(values_of(looks, sets, ranking), fake)
                alarms = rate(values_of(looks, sets, p_value) <= ALPHA)
                row = {"channel": channel, "way": way, "set": label, "explained": round(explained, 3)}
                rows.append({"table": "conditional", **row, "auc": round(auc, 4), **_interval(alarms)})
    return rows


def _auc(real: Floats, fake: Floats) -> float:
    """AUC without its interval, which takes a second."""
    return measures(real, fake, threshold=0.0, replicates=1)["auc"].value


def _p(conformal: Conformal, score: float) -> float:
    return np.nan if np.isnan(score) else float(conformal.p_values([score])[0])


def damage_rows(detector: Detector, files: Sequence[tuple[Picture, Path]], name: str) -> list[Row]:
    """How much is too small or too damaged for a verdict, how much of all is flagged (of photographs, also of the
    set of which it is most), and the known channel's AUC, after steps of the benchmark's `delivery`."""
    rows = []
    for step in DAMAGES:
        looks = _looks_after(step, detector, files, name)
        real, fake = (
            [one for one in looks if one.picture.label == "real"], [one for one in looks if one.picture.set == name]
        )  # fmt: skip
        sets = sorted({one.picture.set for one in real})
        scores = [values_of(looks, some) for some in (sets, [name])]
        row: Row = {"step": step, "n": len(fake), "n_against": len(real)}
        for kind, some in (("real", real), ("fake", fake)):
            row[f"unsure_{kind}"] = round(rate([one.unsure for one in some]).value, 4)
        flagged = {r["set"]: r["value"] for r in flagged_rows(looks, name) if r["channel"] == "verdict"}
        together = rate(values_of(looks, sets, LEVELS["verdict"]) <= ALPHA).value
        row |= {"flagged_real": round(together, 4), "flagged_fake": flagged[name]}
        row["flagged_most"] = max(flagged[one] for one in sets)
        if min(map(len, scores)) >= LEAST:  # else there are too few left to compare
            row |= _interval(measures(*scores, threshold=0.0)["auc"])
        rows.append({"table": "damage", **row})
    return rows


def unseen_damage_rows(detector: Detector, files: Sequence[tuple[Picture, Path]], name: str) -> list[Row]:
    """Shares flagged, or unsure, of a photographic set left out, after the same steps."""
    rows: list[Row] = []
    for step in DAMAGES:
        looks = _looks_after(step, detector, files, name)
        unsure = round(rate([one.unsure for one in looks]).value, 4)
        for row in flagged_rows(looks, name):
            rows.append({**row, "table": "unseen-damage", "step": step, "unsure": unsure})
    return rows


def _looks_after(
    step: str, detector: Detector, files: Sequence[tuple[Picture, Path]], name: str
) -> list[Look]:
    """At faces after a step of the benchmark's `delivery`; `name`: of what is measured, for the progress."""
    with tempfile.TemporaryDirectory() as place:
        harmed = []
        for picture, path in files:
            target = Path(place) / path.name
            with Image.open(path) as image:
                target.write_bytes(STEPS[step].apply(image.convert("RGB")))
            harmed.append((picture, target))
        return look(detector, harmed, f"{step}, {name}")


def taught_rows(detector: Detector, judged: Sequence[Picture], name: str) -> list[Row]:
    """What LEAST pictures of the generator left out bring, on its other pictures; and what that does to others."""
    channel = known_of(detector)
    mine = by_digest(p for p in judged if p.set == name)
    began = time.perf_counter()
    faces: list[Studied] = []
    used = 0
    while len({*Lesson(name, True, tuple(faces), 0).groups.tolist()}) < LEAST:
        faces += [face for face in study([mine[used].path], detector) if face is not None]
        used += 1
    lesson = Lesson(name, True, tuple(faces), 0)
    taught, _ = teach(channel, [lesson])
    seconds = time.perf_counter() - began
    others = [p for p in judged if p.set != name] + mine[used:]
    plain = list(study([p.path for p in others], detector, deliveries=0))
    rows = []
    for generator in dict.fromkeys(p.set for p in others if p.label == "fake"):
        sides = [
            np.stack([f.plain for f, p in zip(plain, others, strict=True) if f is not None and keep(p)])
            for keep in (lambda p: p.label == "real", lambda p, g=generator: p.set == g)
        ]
        before, after = (
            measures(*(head.score(side) for side in sides), threshold=0.0)["auc"]
            for head in (channel.head, taught.head)
        )
        row = {"set": generator, "taught": generator == name, "pictures": used, "seconds": round(seconds, 1)}
        row |= {"n": len(sides[1]), "n_against": len(sides[0]), "before": round(before.value, 4)}
        rows.append({"table": "taught", **row, **_interval(after)})
    return rows


def _interval(value: Interval) -> Row:
    return {key: round(number, 4) for key, number in value._asdict().items()}
