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
All encoders that are new look at the pictures in one pass; what each saw is kept in --keep, so that a density
costs seconds. Cards lie beside the settings; a card that is there is not run again unless its settings changed.
Nothing is chosen on one number: the page shows each generator by itself, and what a choice on two of them does on
the third.
"""

import argparse
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from experiment_page import ALARMS, ALPHAS, CONDITIONS, card_of, write_page
from experiment_scores import BESIDE, RUNG, Floats, Setting, fitted, parsed, sided
from numpy.typing import NDArray
from rich.progress import Progress
from safetensors.numpy import load_file, save_file

import lensborn
from lensborn.bench import metrics
from lensborn.bench.contestants import EncoderContestant
from lensborn.bench.extractors import Extractor, load_extractor
from lensborn.bench.observing import has_row, observe
from lensborn.calibration import Conformal, clopper_pearson
from lensborn.datasets.corpus import split_of
from lensborn.datasets.layouts import read_pictures
from lensborn.datasets.pictures import Picture
from lensborn.detector import half_of

ROOT = Path(__file__).parent.parent
FITTED_ON = ("validate", "calibrate")
CORPUS_SETS = ("photographs", "portraits")  # of many sources, of which the encoder knows some
OWN = "own"
ALPHA = 0.05
REPLICATES = 400
LARGE = 50  # photographs of a set that a summary counts: 13 portraits say nothing

Mask = NDArray[np.bool_]


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
    waiting = [row for path in arguments.settings for row in rows_without_card(path, runs)]
    if waiting:
        gallery = Gallery(arguments.corpus)
        seen = gallery.seen_by({source for row in waiting for source in row.all_sources}, arguments.keep)
        for row in waiting:
            told = outcome(row, gallery, seen)
            row.card.write_text(card_text(told))
            print(row.card.name, json.dumps(told.get("summary", told.get("error"))))
    write_page(ROOT / "experiments", ROOT / "docs")


# --- rows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of a settings file: where its card belongs, and the runs of its encoder."""

    name: str
    setting: Setting
    card: Path
    sources: list[str]  # [KIND:]PATH, or several of them side by side

    @property
    def all_sources(self) -> list[str]:
        """Each by itself, and with the counterparts that the setting compares with."""
        against = self.setting.against
        each = [one for source in self.sources for one in source.split(BESIDE)]
        return each + [f"{against}:{one}" for one in each if against]


def rows_without_card(path: Path, runs: Mapping[str, list[str]]) -> list[Row]:
    """Every row of a settings file that has no card yet, or one of another setting or of fewer runs.

    SystemExit where the encoder of such a row is not given.
    """
    asked = tomllib.loads(path.read_text())
    waiting = []
    for name, changes in asked["rows"].items():
        setting = setting_of({**asked.get("base", {}), **changes})
        card = card_of(path, name)
        sources = sources_of(setting.encoder, runs)
        if card.exists() and is_of(json.loads(card.read_text()), setting, sources):
            continue
        if not sources:
            raise SystemExit(
                f"{path.name}, {name} needs the encoder {setting.encoder}: give it with --runs or --ladder"
            )
        waiting.append(Row(name, setting, card, sources))
    return waiting


def sources_of(encoder: str, runs: Mapping[str, list[str]]) -> list[str] | None:
    """The runs of an encoder; of encoders side by side, those of the same seeds together. None where not given.

    Raises ValueError where encoders side by side have no seed in common.
    """
    names = encoder.split(BESIDE)
    if any(name not in runs for name in names):
        return None
    if len(names) == 1:
        return runs[encoder]
    by_seed = [{run.rpartition("-")[2]: run for run in runs[name]} for name in names]
    seeds = [seed for seed in by_seed[0] if all(seed in one for one in by_seed)]
    if not seeds:
        raise ValueError(f"{encoder}: no seed was trained of all of them")
    return [BESIDE.join(one[seed] for one in by_seed) for seed in seeds]


def setting_of(values: Mapping[str, Any]) -> Setting:
    """What TOML or JSON tells of a setting; what it does not tell is the default."""
    return Setting(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def is_of(card: Mapping[str, Any], setting: Setting, sources: Sequence[str] | None) -> bool:
    """Whether a card tells of this setting, and of as many runs as are given, if any are."""
    return setting_of(card["setting"]) == setting and (sources is None or card.get("runs", 1) == len(sources))


def outcome(row: Row, gallery: "Gallery", seen: Mapping[str, dict[str, Floats]]) -> dict[str, Any]:
    """What a card tells. A failed row is a result too."""
    told = {"row": row.name, "setting": asdict(row.setting), "runs": len(row.sources)}
    several = len(row.sources) > 1
    try:
        rows = [one for source in row.sources for one in measure(row.setting, gallery, seen, source, several)]
    except (ValueError, ArithmeticError) as error:
        return {**told, "error": str(error)}
    return {**told, "summary": summary(rows), "rows": rows, "picture_sha256": gallery.digest}


def card_text(told: Mapping[str, Any]) -> str:
    """JSON, a line a number or a row of measures."""
    head = json.dumps({name: value for name, value in told.items() if name != "rows"}, indent=1)
    if "rows" not in told:
        return head + "\n"
    rows = ",\n".join(f"  {json.dumps(row)}" for row in told["rows"])
    return head.removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}\n'


# --- what encoders see ----------------------------------------------------------------------------------


class Gallery:
    """The pictures that experiments need: all sets of faces.csv, and photographs that no encoder learnt from."""

    def __init__(self, corpus: Path) -> None:
        """Read the tables of a corpus; the pictures themselves are read when they are looked at."""
        photographs = read_pictures(corpus / "photos.csv")
        self.pictures: list[Picture] = read_pictures(corpus / "faces.csv") + [
            picture for picture in photographs if split_of(picture.source) != "train"
        ]
        self.sets = np.array([picture.set for picture in self.pictures])
        self.generated = np.array([picture.label == "fake" for picture in self.pictures])
        self.split = np.array([split_of(picture.source) for picture in self.pictures])

    @cached_property
    def digest(self) -> str:
        """Of the names and bytes of all pictures."""
        found = hashlib.sha256()
        for picture in self.pictures:
            found.update(f"{picture.set}\t{picture.name}\t".encode("utf-8", "surrogateescape"))
            found.update(hashlib.sha256(picture.read()).digest())
        return found.hexdigest()

    def seen_by(self, sources: set[str], keep: Path) -> dict[str, dict[str, Floats]]:
        """Features (N, D) by source and condition, NaN where there is no face; what is not kept, in one pass.

        Counterparts are made of the photographs alone that a density may be fitted to.
        """
        extractors = {source: extractor_of(source) for source in sorted(sources)}
        kept = {source: keep / f"{self._key(source, one)}.safetensors" for source, one in extractors.items()}
        everything = np.ones(len(self.pictures), dtype=bool)
        for where, counterparts in ((everything, False), (self.parts("all")[0], True)):
            new = {
                source: extractor
                for source, extractor in extractors.items()
                if not kept[source].exists() and bool(parsed(source)[0]) == counterparts
            }
            for source, found in self._look(new, where, keep / "pass").items():
                aside = kept[source].with_suffix(".new")
                save_file(found, aside)
                aside.replace(kept[source])
        return {source: load_file(path) for source, path in kept.items()}

    def _look(
        self, extractors: Mapping[str, Extractor], where: Mask, keep: Path
    ) -> dict[str, dict[str, NDArray[np.float32]]]:
        """What encoders see of some of the pictures, in one pass."""
        if not extractors:
            return {}
        chosen = [self.pictures[n] for n in np.flatnonzero(where)]
        contestants = [
            EncoderContestant(source, one.sha256, one, "lensborn") for source, one in extractors.items()
        ]
        with Progress() as bar:
            task = bar.add_task(f"{len(extractors)} encoders", total=len(chosen))
            observed = observe(
                chosen, CONDITIONS, contestants, keep=keep, progress=partial(bar.advance, task)
            )
        found: dict[str, dict[str, NDArray[np.float32]]] = {}
        for source in extractors:
            for name in CONDITIONS:
                rows = observed.conditions[name].observed[source]
                whole = np.full((len(self.pictures), rows.shape[1]), np.nan, np.float32)
                whole[where] = rows
                found.setdefault(source, {})[name] = whole
        return found

    def _key(self, source: str, extractor: Extractor) -> str:
        what = (source.rpartition(":")[0], extractor.sha256, CONDITIONS, self.digest, lensborn.__version__)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def parts(self, fit: str) -> tuple[Mask, Mask, Mask]:
        """Masks: fitted, calibrated on, measured. Generated pictures are only measured."""
        both = fit in ("photographs", "all")
        mine = np.zeros(len(self.pictures), dtype=bool)
        halves = []
        for n, picture in enumerate(self.pictures):
            of_corpus = both and picture.set in CORPUS_SETS
            halves.append(half_of(picture.source if of_corpus else picture.name))
            if of_corpus:
                mine[n] = self.split[n] in FITTED_ON
            elif picture.set == fit or (fit == "all" and not self.generated[n]):
                mine[n] = half_of(f"use/{picture.name}") == "fit"
        half = np.array(halves)
        # a portrait whose source the encoder learnt from is no unseen photograph; other sets have one source each
        strange = ~np.isin(self.sets, CORPUS_SETS) | (self.split == "test")
        return mine & (half == "fit"), mine & (half == "calibrate"), strange & ~mine

    @cached_property
    def own_half(self) -> Mask:
        """Photographs that calibrate for their own set where a setting asks for it."""
        keys = [one.source if one.set in CORPUS_SETS else one.name for one in self.pictures]
        half = np.array([half_of(f"own/{key}") for key in keys])
        return np.asarray((half == "calibrate") & ~self.generated)


def extractor_of(source: str) -> Extractor:
    """The encoder at [[COUNTERPART:]KIND:]PATH; counterparts are looked at by rungs alone."""
    counterpart, kind, path = parsed(source)
    if kind == RUNG:
        from ladder import COUNTERPARTS, RungExtractor  # noqa: PLC0415 - torch

        return RungExtractor(path, COUNTERPARTS[counterpart] if counterpart else None)
    return load_extractor(kind or "lensborn", path)


# --- measures -------------------------------------------------------------------------------------------


def measure(
    setting: Setting, gallery: Gallery, seen: Mapping[str, dict[str, Floats]], source: str, several: bool
) -> list[dict[str, Any]]:
    """AUC of each generated set against each photographic set, and false alarms, over the seeds.

    `several`: the encoder is one of several runs, whose seeds are those of the rows.
    """
    rows = []
    seeds = (int(source.rpartition("-")[2]),) if several else setting.seeds
    parts = gallery.parts(setting.fit)
    for condition in CONDITIONS:
        each = source.split(BESIDE)
        features = np.hstack([seen[one][condition] for one in each]).astype(np.float64)
        usable = has_row(features)
        fit, calibrate, test = (usable & part for part in parts)
        own = usable & gallery.own_half if setting.calibrate == OWN else np.zeros_like(test)
        counterparts = None
        if setting.against:
            broken = np.hstack([seen[f"{setting.against}:{one}"][condition][fit] for one in each])
            broken = broken.astype(np.float64)
            counterparts = broken[has_row(broken)]
        for seed in seeds:
            score = fitted(setting, source, seed, features[fit], counterparts)
            scores = np.full(len(features), math.nan)
            scores[usable] = sided(setting.side, score(features[usable]), score(features[calibrate]))
            what = {"condition": condition, "seed": seed}
            rows += compare(gallery, scores, calibrate, test, own, what)
    return rows


def compare(
    gallery: Gallery, scores: Floats, calibrate: Mask, test: Mask, own: Mask, what: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row a generated and photographic set, a row a photographic set, and a row a set of how many are flagged."""
    general = Conformal.fit(scores[calibrate])
    rows: list[dict[str, Any]] = []
    fakes = {
        str(name): scores[(gallery.sets == name) & np.isfinite(scores)]
        for name in dict.fromkeys(gallery.sets[gallery.generated])
    }
    for real in map(str, dict.fromkeys(gallery.sets[test & ~gallery.generated])):
        here = gallery.sets == real
        mine, calibrating = scores[here & test & ~own], scores[here & test & own]
        if own.any() and not (len(mine) and len(calibrating)):
            continue  # a set of few sources may have none in a half
        conformal = Conformal.fit(calibrating) if own.any() else general
        threshold = flagging(conformal, ALPHA)
        flagged = int((mine >= threshold).sum())
        low, high = clopper_pearson(flagged, len(mine))
        alarms = {"false_alarms": flagged / len(mine), "low": low, "high": high}
        rows.append({**what, "real": real, "n": len(mine), **alarms})
        rows.append({**what, "set": real, "generated": False, "flagged": shares(conformal, mine)})
        for fake, theirs in fakes.items():
            found = metrics.measures(mine, theirs, threshold, replicates=REPLICATES)["auc"]
            auc = {"auc": found.value, "low": found.low, "high": found.high}
            rows.append({**what, "real": real, "generated": fake, "n": len(mine), **auc})
    rows += [
        {**what, "set": fake, "generated": True, "flagged": shares(general, theirs)}
        for fake, theirs in fakes.items()
    ]
    return rows


def flagging(conformal: Conformal, alpha: float) -> float:
    """The lowest score that is flagged: p <= alpha exactly above the conformal threshold."""
    return float(np.nextafter(conformal.threshold(alpha), math.inf))


def shares(conformal: Conformal, scores: Floats) -> list[float]:
    """Of scores (N,), the share flagged at each of ALPHAS."""
    return [round(float((scores >= flagging(conformal, alpha)).mean()), 4) for alpha in ALPHAS]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per condition: AUC of each generated set (mean over photographic sets and seeds), and false alarms."""
    out: dict[str, Any] = {}
    for condition in CONDITIONS:
        mine = [row for row in rows if row["condition"] == condition and "real" in row]
        values: dict[str, list[float]] = {}
        for row in mine:
            large = row["n"] >= LARGE
            if "auc" in row and large:
                values.setdefault(row["generated"], []).append(row["auc"])
                if (row["generated"], row["real"]) == ("stylegan1", "ffhq"):
                    values.setdefault("matched", []).append(row["auc"])
            elif "false_alarms" in row and large:
                values.setdefault(f"{ALARMS}{row['real']}", []).append(row["false_alarms"])
        out[condition] = {name: round(float(np.mean(one)), 3) for name, one in values.items()}
        seeds = sorted({row["seed"] for row in mine})
        by_seed = [
            np.mean(
                [row["auc"] for row in mine if "auc" in row and row["seed"] == seed and row["n"] >= LARGE]
            )
            for seed in seeds
        ]
        out[condition] |= {
            "mean": round(float(np.mean(by_seed)), 3),
            "spread": round(float(np.ptp(by_seed)), 3),
        }
    return out


if __name__ == "__main__":
    main()
