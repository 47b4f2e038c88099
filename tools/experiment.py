"""Runs experiments on densities and scores: settings files in, run cards and the page docs/experiments.md out.

    python tools/experiment.py --corpus FOLDER --runs NAME=RUN ... experiments/*.toml

A settings file asks one question and varies one thing:

    question = "Which side is strange?"
    learnt = "what was learnt, written after the run"
    [base]                         # what all its rows share; see Setting for the names
    encoder = "both"               # a name of --runs, or a rung of --ladder
    [rows.one-sided]               # a row each: what differs from the base
    [rows.two-sided]
    side = "two"

A row is measured on equalised pictures (256 px), and on published ones, over all its seeds: those of the density,
or those of the training where a rung of the ladder (`tools/ladder.py`) has several. The density is fitted to
photographs of sources that the encoder has not seen (splits validate and calibrate of the corpus, in halves by
hash), and measured on the generated sets against FFHQ, CelebA-HQ, portraits and photographs of the test split.
Features are kept in --keep, so that a density costs seconds. Cards lie beside the settings; a card that is there is
not run again unless its settings changed. Nothing is chosen on one number: the page shows each generator by itself.
"""

import argparse
import hashlib
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors import safe_open

from lensborn.bench import metrics
from lensborn.bench.contestants import EncoderContestant
from lensborn.bench.extractors import Extractor, load_extractor
from lensborn.bench.observing import Observed, has_row, observe
from lensborn.bench.protocols import EQUALISED, PUBLISHED
from lensborn.bench.render import escaped
from lensborn.calibration import Conformal, clopper_pearson
from lensborn.datasets.corpus import split_of
from lensborn.datasets.layouts import read_pictures
from lensborn.density import fit_mixture
from lensborn.detector import half_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "experiments.md"
CONDITIONS = (PUBLISHED, EQUALISED)
FITTED_ON = ("validate", "calibrate")
HEADS = ("manipulation", "trace", "rank")
RUNG = "rung"
ALPHA = 0.05
REPLICATES = 400

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Setting:
    """One row."""

    encoder: str = "both"  # a run, a bundle, or a rung
    fit: str = "photographs"  # or the name of a real set, of which half is then fitted and calibrated on
    l2: bool = False  # features divided by their length
    dims: int = 64  # principal axes kept, 0: all
    whiten: bool = False  # principal axes scaled to one
    density: str = (
        "mixture"  # mixture, knn, manipulation, trace (the head's logit), rank (spread of the tag scores)
    )
    components: int = 4
    covariance: str = "full"
    shrinkage: float = 0.1
    neighbours: int = 5
    side: str = (
        "high"  # high: unlikely is strange; low: likely is strange; two: far from the median is strange
    )
    seeds: tuple[int, ...] = (0, 1, 2)


def main() -> None:
    """See the module's head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", type=Path, nargs="+")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=[], metavar="NAME=[KIND:]PATH")
    parser.add_argument("--ladder", type=Path, help="the folder that tools/ladder.py wrote")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "experiments")
    arguments = parser.parse_args()
    runs = {name: [source] for name, source in (one.split("=", 1) for one in arguments.runs)}
    for card in sorted(arguments.ladder.glob("*/card.json")) if arguments.ladder else ():
        rung = card.parent.name.rpartition("-")[0]
        runs.setdefault(rung, []).append(f"{RUNG}:{card.parent}")
    seen: dict[str, Observed] = {}
    for path in arguments.settings:
        run_file(path, arguments.corpus, runs, arguments.keep, seen)
    PAGE.write_text(page(ROOT / "experiments"))


def run_file(
    path: Path, corpus: Path, runs: dict[str, list[str]], keep: Path, seen: dict[str, Observed]
) -> None:
    """Every row of a settings file that has no card yet, or one of another setting or of fewer runs."""
    asked = tomllib.loads(path.read_text())
    waiting: list[tuple[str, Setting, Path]] = []
    for name, changes in asked["rows"].items():
        values = {**asked.get("base", {}), **changes}
        setting = Setting(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        card = path.with_name(f"{path.stem}.{name}.json")
        if card.exists() and is_of(json.loads(card.read_text()), setting, runs.get(setting.encoder)):
            continue
        if setting.encoder not in runs:
            raise SystemExit(
                f"{path.name}, {name} needs the encoder {setting.encoder}: give it with --runs or --ladder"
            )
        waiting.append((name, setting, card))
    new = {source for _, setting, _ in waiting for source in runs[setting.encoder]} - seen.keys()
    if new:
        seen |= dict.fromkeys(new, look(path.stem, sorted(new), corpus, keep))
    for name, setting, card in waiting:
        sources = runs[setting.encoder]
        try:
            rows = [
                row
                for source in sources
                for row in measure(setting, seen[source], source, several=len(sources) > 1)
            ]
            pictures = digest(seen[sources[0]])
            outcome = {"summary": summary(rows), "rows": rows, "picture_sha256": pictures}
        except (ValueError, ArithmeticError) as error:  # a failed run is a result too
            outcome = {"error": str(error)}
        told = {"row": name, "setting": asdict(setting), "runs": len(sources), **outcome}
        card.write_text(json.dumps(told, indent=1) + "\n")
        print(card.name, json.dumps(outcome.get("summary", outcome)))


def is_of(card: dict[str, Any], setting: Setting, sources: list[str] | None) -> bool:
    """Whether a card tells of this setting, and of as many runs as are given, if any are."""
    same = card["setting"] == json.loads(json.dumps(asdict(setting)))
    return same and (sources is None or card.get("runs", 1) == len(sources))


def extractor_of(source: str) -> Extractor:
    """The encoder at [KIND:]PATH."""
    kind, _, path = source.rpartition(":")
    if kind == RUNG:
        from ladder import RungExtractor  # noqa: PLC0415 - torch

        return RungExtractor(Path(path))
    return load_extractor(kind or "lensborn", Path(path))


def look(name: str, sources: list[str], corpus: Path, keep: Path) -> Observed:
    """Features of all pictures that an experiment needs, in both conditions, of several encoders in one pass."""
    pictures = read_pictures(corpus / "faces.csv") + [
        picture for picture in read_pictures(corpus / "photos.csv") if split_of(picture.source) != "train"
    ]
    with Progress() as bar:
        task = bar.add_task(name, total=len(pictures))
        extractors = {source: extractor_of(source) for source in sources}
        contestants = [EncoderContestant(source, one.sha256, one) for source, one in extractors.items()]
        return observe(pictures, CONDITIONS, contestants, keep=keep, progress=lambda n: bar.advance(task, n))


def measure(setting: Setting, observed: Observed, source: str, *, several: bool) -> list[dict[str, Any]]:
    """AUC of each generated set against each photographic set, and false alarms, over the seeds.

    `several`: the encoder is one of several runs, whose seeds are those of the rows.
    """
    rows = []
    seeds = (int(source.rpartition("-")[2]),) if several else setting.seeds
    for condition in CONDITIONS:
        features = np.asarray(observed.conditions[condition].observed[source], dtype=np.float64)
        usable = has_row(features)
        fit, calibrate, test = (usable & part for part in parts(observed, setting.fit))
        for seed in seeds:
            score = fitted(setting, features[fit], seed, source)
            scores = np.full(len(features), math.nan)
            scores[usable] = sided(setting.side, score(features[usable]), score(features[calibrate]))
            threshold = float(np.nextafter(Conformal.fit(scores[calibrate]).threshold(ALPHA), math.inf))
            rows += compare(observed, scores, test, threshold, {"condition": condition, "seed": seed})
    return rows


def parts(observed: Observed, fit: str) -> tuple[NDArray[np.bool_], ...]:
    """Masks: fitted, calibrated on, measured. Generated pictures are only measured."""
    pictures = observed.pictures
    sets = np.array([picture.set for picture in pictures])
    split = np.array([split_of(picture.source) for picture in pictures])
    key = [p.source if fit == "photographs" else p.name for p in pictures]
    half = np.array([half_of(one) for one in key])
    # a portrait whose source the encoder learnt from is no unseen photograph; the other sets have one source each
    strange = ~np.isin(sets, ("portraits", "photographs")) | (split == "test")
    if fit == "photographs":
        mine = np.isin(sets, ("photographs", "portraits")) & np.isin(split, FITTED_ON)
        return mine & (half == "fit"), mine & (half == "calibrate"), strange & ~mine
    mine = (sets == fit) & np.array([half_of(f"use/{p.name}") == "fit" for p in pictures])
    return mine & (half == "fit"), mine & (half == "calibrate"), strange & ~mine


def fitted(setting: Setting, features: Floats, seed: int, source: str) -> Score:
    """The score, higher = less like the photographs it was fitted to, of features (N, D)."""
    if setting.density in HEADS:
        return head(setting.density, Path(source.rpartition(":")[2]))
    prepare = prepared(setting, features)
    known = prepare(features)
    if setting.density == "knn":
        return lambda rows: neighbour_distance(prepare(rows), known, setting.neighbours)
    mixture = fit_mixture(
        known.astype(np.float32),
        n_components=setting.components,
        covariance=setting.covariance,  # type: ignore[arg-type]
        shrinkage=setting.shrinkage,
        seed=seed,
    )
    return lambda rows: mixture.score(prepare(rows).astype(np.float32))


def prepared(setting: Setting, features: Floats) -> Score:
    """Length, principal axes and their scale, learnt from the fitted photographs."""

    def unit(rows: Floats) -> Floats:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) if setting.l2 else rows

    centre = unit(features).mean(axis=0)
    _, singular, axes = np.linalg.svd(unit(features) - centre, full_matrices=False)
    kept = axes[: setting.dims or len(axes)]
    scale = singular[: len(kept)] / math.sqrt(len(features)) if setting.whiten else np.ones(len(kept))
    return lambda rows: np.asarray((unit(rows) - centre) @ kept.T / scale)


def neighbour_distance(rows: Floats, known: Floats, k: int) -> Floats:
    """Distance to the k-th nearest fitted photograph; a photograph is not its own neighbour."""
    squares = (rows**2).sum(1)[:, None] + (known**2).sum(1) - 2 * rows @ known.T
    squares[squares < 1e-6] = math.inf
    return np.asarray(np.sqrt(np.maximum(np.partition(squares, k - 1, axis=1)[:, k - 1], 0)))


def head(name: str, run: Path) -> Score:
    """The run's own evidence: a logit, or how far the tag scores lie from their mean."""
    with safe_open(run / "best.safetensors", framework="numpy") as file:
        weight, bias = file.get_tensor(f"{name}.weight"), file.get_tensor(f"{name}.bias")
    if name != "rank":
        return lambda rows: np.asarray(rows @ weight[0] + bias[0])
    return lambda rows: np.asarray(np.linalg.norm(rows @ weight.T + bias, axis=1))


def sided(side: str, scores: Floats, reference: Floats) -> Floats:
    """Which side of the photographs' scores is strange; `reference`: scores of photographs kept apart."""
    if side == "two":
        return np.abs(scores - np.median(reference))
    return -scores if side == "low" else scores


def compare(
    observed: Observed, scores: Floats, test: NDArray[np.bool_], threshold: float, what: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row a generated and photographic set, and a row a photographic set."""
    names = np.array([picture.set for picture in observed.pictures])
    labels = np.array([picture.label for picture in observed.pictures])
    reals = list(dict.fromkeys(names[test & (labels == "real")]))
    rows: list[dict[str, Any]] = []
    for real in reals:
        mine = scores[test & (names == real)]
        flagged = int((mine >= threshold).sum())
        low, high = clopper_pearson(flagged, len(mine))
        rows.append(
            {
                **what,
                "real": str(real),
                "n": len(mine),
                "false_alarms": flagged / len(mine),
                "low": low,
                "high": high,
            }
        )
        for fake in dict.fromkeys(names[labels == "fake"]):
            theirs = scores[(names == fake) & np.isfinite(scores)]
            found = metrics.measures(mine, theirs, threshold, replicates=REPLICATES)["auc"]
            auc = {"auc": found.value, "low": found.low, "high": found.high}
            rows.append({**what, "real": str(real), "generated": str(fake), "n": len(mine), **auc})
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per condition: AUC of each generated set (mean over photographic sets and seeds), and false alarms."""
    out: dict[str, Any] = {}
    for condition in CONDITIONS:
        mine = [row for row in rows if row["condition"] == condition]
        values: dict[str, list[float]] = {}
        for row in mine:
            large = row["n"] >= metrics.MIN_GROUPS * 5  # 13 portraits say nothing
            if "auc" in row and large:
                values.setdefault(row["generated"], []).append(row["auc"])
                if (row["generated"], row["real"]) == ("stylegan1", "ffhq"):
                    values.setdefault("matched", []).append(row["auc"])
            elif "false_alarms" in row and large:
                values.setdefault(f"alarms {row['real']}", []).append(row["false_alarms"])
        out[condition] = {name: round(float(np.mean(one)), 3) for name, one in values.items()}
        seeds = sorted({row["seed"] for row in mine})
        by_seed = [
            np.mean([row["auc"] for row in mine if "auc" in row and row["seed"] == seed and row["n"] >= 50])
            for seed in seeds
        ]
        out[condition] |= {
            "mean": round(float(np.mean(by_seed)), 3),
            "spread": round(float(np.ptp(by_seed)), 3),
        }
    return out


def digest(observed: Observed) -> str:
    """Of all pictures looked at."""
    return hashlib.sha256("".join(observed.sha256).encode()).hexdigest()


def page(folder: Path) -> str:
    """docs/experiments.md from all settings files that have cards, the newest (by number) first."""
    lines = [(folder / "head.md").read_text().rstrip("\n"), ""]
    for path in sorted(folder.glob("*.toml"), reverse=True):
        if not any(folder.glob(f"{path.stem}.*.json")):
            continue
        asked = tomllib.loads(path.read_text())
        lines += [f"## {path.stem}: {escaped(asked['question'])}", "", asked.get("learnt", "").strip(), ""]
        for condition in CONDITIONS:
            table = [
                (name, json.loads(card.read_text()))
                for name in asked["rows"]
                if (card := path.with_name(f"{path.stem}.{name}.json")).exists()
            ]
            lines += [*_table(condition, table), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(condition: str, cards: list[tuple[str, dict[str, Any]]]) -> list[str]:
    found = [card["summary"][condition] for _, card in cards if "summary" in card]
    keys = list(dict.fromkeys(key for one in found for key in one))
    lines = [f"| {condition} | {' | '.join(keys)} |", "|" + " --- |" * (len(keys) + 1)]
    for name, card in cards:
        if "error" in card:
            lines.append(f"| {escaped(name)} | failed: {escaped(card['error'])} |" + " |" * (len(keys) - 1))
            continue
        cells = (card["summary"][condition].get(key) for key in keys)
        lines.append(f"| {escaped(name)} | {' | '.join('-' if c is None else f'{c:.3f}' for c in cells)} |")
    return lines


if __name__ == "__main__":
    main()
