"""Trains, measures and ships the known channel.

    python tools/known.py train --corpus FOLDER --start RUNG --out RUN [--leave-out SET ...] [--seed N]
    python tools/known.py measure --corpus FOLDER --runs SET=RUN,RUN,RUN ...
    python tools/known.py ship --corpus FOLDER --runs RUN RUN RUN [--base BUNDLE]

FOLDER holds photos.csv and faces.csv with their pictures. Training begins from a rung "base" of the ladder
(`ladder.py`), which the five tasks trained on photographs alone, and changes its last stage. It sees the sources
"train" of the corpus, half of FFHQ and CelebA-HQ, and 85 % of each generated set; never the portraits. Many of
these are of sources that the corpus has, too: only those of sources that were not learnt from are judged.
Runs of several seeds that began from one rung share all but their last stage, and make one channel together.
`measure` takes such runs that left out one set each, several times where there are, and writes docs/known.json and
the tables of docs/known.md: what the channel says of that generator, how its probabilities hold, what a calibration
given delivery would change, what damage does, and what `lensborn teach` brings; or what share is flagged of
that photographic set. Its first channel is that of the shipped bundle.
`ship` puts a channel of runs that saw all of them beside the first channel of BASE (the shipped bundle if left
out), whose files it does not touch, and writes the shipped bundle and the README's second table: before measuring,
where the first channel is new, and after it, with the tables in the card.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress, track

from lensborn import defaults
from lensborn.bench.conditional import Conditional, delivery_traits
from lensborn.bench.delivery import STEPS, equalise
from lensborn.bench.metrics import Interval, measures, rate
from lensborn.bench.plots import reliability_plot
from lensborn.bench.render import write_block
from lensborn.bundle import KNOWN_KEY, SHIPPED, KnownPart
from lensborn.calibration import Conformal
from lensborn.datasets.corpus import read_corpus, split_of
from lensborn.datasets.pictures import Picture, pictures_of_table
from lensborn.detector import Detector, half_of, read_faces
from lensborn.faces import FaceFinder, crop_face, crop_square
from lensborn.features import Encoder
from lensborn.known import KnownChannel, KnownGenerator, KnownLook, Silence
from lensborn.known_head import KnownHead
from lensborn.memory import CALIBRATE, LEARN, Memory
from lensborn.photo import decode_photo, digest_of
from lensborn.signs import HANDICAP, measured
from lensborn.teach import LEAST, Lesson, Studied, known_of, remembering, study, teach

if TYPE_CHECKING:
    from lensborn.pretext.known import Example

ROOT = Path(__file__).parent.parent
PAGE, DATA = ROOT / "docs" / "known.md", ROOT / "docs" / "known.json"
NAME = "lensborn-8"
UNSEEN = "portraits"
PHOTOS = "photos"
LEARNT = 400  # photographs of the corpus to learn the head from, and remember, of each of two splits
SIDE = 192  # px: every face is measured at this size, too
ALPHA = defaults.ALPHA
HALVES = (("calibrate", 0.5), ("judge", 0.5))
HANDICAPS = (0.0, 0.5, 1.0, 1.5)  # of faces unlike photographs, against those like generated ones
BINS = 8  # of a reliability diagram
#: Modules whose code measured numbers depend on, beside this one and `pretext.known`.
CODE = (
    *("contrast", "delivery", "detector", "faces", "features", "known", "known_head", "memory"),
    *("normal_scores", "signs", "strangeness", "teach", "pretext.model"),
)
DAMAGES = ("jpeg-95", "jpeg-75", "jpeg-50", "resize-50", "resize-25", "blur-0.5", "blur-1", "blur-2")

Floats = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """What both channels say of the largest face of a picture, and how it was delivered (T,)."""

    picture: Picture
    score: float
    p_value: float
    known: KnownGenerator | None
    fused: float  # both channels' evidence, see `KnownHead.fused`; NaN where the known one says nothing
    combined: float  # the smallest alpha at which the face is flagged; NaN where it never is
    traits: Floats
    signs: Floats  # (2,), see `signs.measured`; NaN where the channel says nothing

    @property
    def damaged(self) -> bool:
        """Whether the verdict is "unsure" for lack of fine detail."""
        return bool(np.isnan(self.combined))


SCORES: dict[str, Callable[[Look], float]] = {
    "one-class": lambda look: look.score,
    "known": lambda look: look.known.score if look.known else np.nan,
    "fused": lambda look: look.fused,
}
LEVELS: dict[str, Callable[[Look], float]] = {
    "one-class": lambda look: look.p_value,
    "known": lambda look: look.known.p_value if look.known else 1.0,
    "verdict": lambda look: 1.0 if look.damaged else look.combined,
}


# --- which pictures serve for what ----------------------------------------------------------------------


def labelled(folder: Path) -> list[Picture]:
    """The pictures of faces.csv."""
    return pictures_of_table(folder / "faces.csv")


def splits_of(folder: Path, leave_out: Sequence[str]) -> dict[str, list[Picture]]:
    """The labelled pictures by use, after those of training: "train" and, to choose the epoch, "validate".

    Of the others, and of the generated ones in "validate", half calibrate and half are judged, as are all pictures
    of the sets that were left out, and the portraits of sources that nothing was learnt from.
    """
    from lensborn.pretext.known import picture_split  # noqa: PLC0415

    splits: dict[str, list[Picture]] = {"train": [], "calibrate": [], "judge": []}
    for picture in labelled(folder):
        if picture.set == UNSEEN and split_of(picture.source) in ("train", "validate"):
            continue
        split = "judge" if picture.set in (*leave_out, UNSEEN) else str(picture_split(picture))
        if split == "validate":  # photographs help to learn the head, generated faces to calibrate it
            split = "train" if picture.label == "real" else "calibrate"
        if picture.set not in (*leave_out, UNSEEN) and split == (
            "judge" if picture.label == "real" else "calibrate"
        ):
            split = split_of(f"calibrate/{picture.name}", HALVES)
        splits[split].append(picture)
    return splits


def photographs(folder: Path, split: str) -> list[Picture]:
    """The corpus's photographs of a split by source, as labelled pictures."""
    return [
        Picture(crop.file, crop.row["file"], PHOTOS, "real", crop.source)
        for crop in read_corpus(folder)
        if split_of(crop.source) == split
    ]


# --- training and the head ------------------------------------------------------------------------------


def training_examples(folder: Path, leave_out: Sequence[str]) -> "tuple[list[Example], list[Example]]":
    """What a run that leaves out these sets learns from, and what chooses its epoch."""
    from lensborn.pretext import known  # noqa: PLC0415

    pictures = [picture for picture in labelled(folder) if picture.set not in leave_out]
    crops = known.photo_examples(read_corpus(folder))
    train, validate = (
        known.picture_examples([p for p in pictures if known.picture_split(p) == split])
        for split in ("train", "validate")
    )
    return crops["train"] + train, crops["validate"][::4] + validate


def train(arguments: argparse.Namespace) -> None:
    """One run."""
    import torch  # noqa: PLC0415

    from lensborn.pretext import known  # noqa: PLC0415

    torch.set_num_threads(arguments.threads)
    leave_out = (*arguments.leave_out, UNSEEN)
    settings = known.KnownSettings(
        start=str(arguments.start / known.BEST), seed=arguments.seed, leave_out=leave_out
    )
    with Progress() as bar:
        task = bar.add_task("training", total=settings.epochs * settings.steps)
        trainer = known.KnownTrainer(
            settings,
            *training_examples(arguments.corpus, leave_out),
            arguments.out,
            progress=lambda done, _, means: bar.update(task, completed=done),
        )
        trainer.fit()
    known.export_known([arguments.out])


def with_channel(
    base: Detector, runs: Sequence[Path], folder: Path, leave_out: Sequence[str], *, whole: bool
) -> Detector:
    """A detector with the channel of some runs, whose head learnt and calibrated on what the runs may see.

    `whole`: nothing is kept to judge.
    """
    from lensborn.pretext.known import export_known  # noqa: PLC0415

    each = [json.loads((run / "settings.json").read_text()) for run in runs]
    for run, settings in zip(runs, each, strict=True):
        if set(settings["leave_out"]) != {*leave_out, UNSEEN}:
            raise SystemExit(f"{run} left out {settings['leave_out']}, not {[*leave_out, UNSEEN]}")
    told, *others = (
        {name: settings[name] for name in ("backbone", "patch", "epochs", "steps", "batch", "lr")}
        for settings in each
    )
    if any(other != told for other in others):
        raise SystemExit("the runs of one channel must have the same settings but for their seeds")
    manifest = {
        **asdict(KnownLook(patch=told["patch"])),
        "training": {**told, "seeds": [settings["seed"] for settings in each]},
    }
    xml = export_known(runs)
    dim = Encoder(xml).feature_dim
    looking = base.with_known(
        KnownChannel(xml, KnownPart(KnownHead.blank(dim, base.encoder.feature_dim), manifest))
    )
    studied: list[tuple[str, bool, list[Studied], int]] = []
    seen: list[Path] = []

    def remember(name: str, generated: bool, paths: Sequence[Path], use: int) -> None:
        found = track(study(paths, looking), name, total=len(paths))
        studied.append((name, generated, [face for face in found if face is not None], use))

    # Of the first, the network has learnt each face: the head needs others, too.
    for split in ("train", "validate"):
        learnt = photographs(folder, split)
        chosen = np.random.default_rng(0).permutation(len(learnt))[:LEARNT]
        remember(PHOTOS, False, [learnt[number].path for number in chosen], LEARN)
    remember(PHOTOS, False, [picture.path for picture in photographs(folder, "calibrate")], CALIBRATE)
    splits = splits_of(folder, leave_out)
    for name in dict.fromkeys(picture.set for picture in labelled(folder)):
        if name in (*leave_out, UNSEEN):
            continue
        mine = {split: [p.path for p in pictures if p.set == name] for split, pictures in splits.items()}
        generated = next(p.label for p in splits["train"] if p.set == name) == "fake"
        calibrate = mine["calibrate"] + (mine["judge"] if whole else [])
        remember(name, generated, mine["train"], LEARN)
        remember(name, generated, calibrate, CALIBRATE)
        seen += mine["train"] + calibrate
    prefixes = frozenset(digest_of(path)[:16] for path in seen)
    memory = Memory.empty(
        np.stack([face.plain for _, generated, faces, _ in studied for face in faces if not generated])
    )
    for name, generated, faces, use in studied:
        memory = remembering(memory, name, generated, faces, use)
    channel = KnownChannel(xml, KnownPart(KnownHead.learn(memory, dim), manifest, prefixes))
    return base.with_known(channel, name=" ".join(["without", *leave_out]))


# --- looking --------------------------------------------------------------------------------------------


def equalised(pictures: Iterable[Picture], folder: Path) -> Iterator[tuple[Picture, Path]]:
    """Each picture's largest face at SIDE px as JPEG, in files; those with a face of that side / 1.2 or more."""
    finder = FaceFinder()
    for number, picture in enumerate(pictures):
        pixels = decode_photo(picture.read()).pixels
        faces = finder.find(pixels)
        if faces and crop_square(faces[0].box, pixels.shape[1], pixels.shape[0])[2] * 1.2 >= SIDE:
            path = folder / f"{number:05d}.jpg"
            path.write_bytes(equalise(crop_face(pixels, faces[0].box, SIDE)))
            yield picture, path


def look(detector: Detector, files: Sequence[tuple[Picture, Path]], what: str) -> list[Look]:
    """What both channels say of the largest face of each file that has one."""
    channel, looks = known_of(detector), []
    photos = read_faces((path for _, path in files), detector.preprocessing, channel)
    for photo, (picture, _) in zip(track(photos, what, total=len(files)), files, strict=True):
        if photo.faces and photo.patches is not None:
            crop, patch, side = photo.crops[:1], photo.patches[:1], photo.sides[:1]
            (found,) = detector.weigh(crop, patch, side)
            known = found.known if isinstance(found.known, KnownGenerator) else None
            signs, fused = np.full(2, np.nan), np.nan
            if known:
                seen = channel.look_at(patch, side).features
                signs = measured(channel.head.signs.known(seen), channel.head.scale.levels)[0]
                fused = float(channel.head.fused([known.score], [found.score])[0])
            combined = np.nan if found.known is Silence.DAMAGED else found.combined
            traits = delivery_traits(patch, side)[0]
            looks.append(Look(picture, found.score, found.p_value, known, fused, combined, traits, signs))
    return looks


def values_of(
    looks: Sequence[Look], sets: Sequence[str], value: Callable[[Look], float] = SCORES["known"]
) -> Floats:
    """A number of the looks at some sets, those that are finite."""
    values = np.array([value(one) for one in looks if one.picture.set in sets])
    return values[np.isfinite(values)]


# --- what is measured -----------------------------------------------------------------------------------


def measure_runs(name: str, runs: Sequence[Path], folder: Path, view: Path) -> list[Row]:
    """Rows of numbers about the set that runs left out, and about photographs that they did not see.

    `view`: a folder for the equalised files, which serve for every run.
    """
    detector = with_channel(Detector.load(), runs, folder, [name], whole=False)
    splits = splits_of(folder, [name])
    pictures = splits["judge"] + photographs(folder, "test")
    references = photographs(folder, "calibrate")
    equal = {picture.name: path for picture, path in equalised_once(folder, view)}
    seed = json.loads((runs[0] / "settings.json").read_text())["seed"]
    photographic = any(picture.set == name and picture.label == "real" for picture in splits["judge"])
    rows: list[Row] = []
    for condition in ("published", f"equalised-{SIDE}"):
        places = (lambda p: p.path) if condition == "published" else (lambda p: equal.get(p.name))
        mine, reference = (
            look(detector, [(p, path) for p in some if (path := places(p))], f"{condition}, {name}")
            for some in (pictures, references)
        )
        if photographic:
            found = [{**row, "table": "unseen"} for row in flagged_rows(mine, name)]
        else:
            found = auc_rows(mine, name) + flagged_rows(mine, name) + reliability_rows(mine, name)
            found += sign_rows(mine, name)
            found += conditional_rows(mine, reference, name)
        rows += [{"left_out": name, "seed": seed, "condition": condition, **row} for row in found]
    if photographic:
        return rows
    late = damage_rows(detector, [(p, equal[p.name]) for p in splits["judge"] if p.name in equal], name)
    late += taught_rows(detector, splits["judge"], name)
    return rows + [{"left_out": name, "seed": seed, **row} for row in late]


def equalised_once(folder: Path, view: Path) -> list[tuple[Picture, Path]]:
    """The equalised files of everything that is ever judged; made by the first call."""
    index = view / "index.json"
    everything = labelled(folder) + photographs(folder, "test") + photographs(folder, "calibrate")
    if not index.exists():
        made = equalised(track(everything, "equalising"), view)
        index.write_text(json.dumps({picture.name: path.name for picture, path in made}))
    names = json.loads(index.read_text())
    return [(picture, view / names[picture.name]) for picture in everything if picture.name in names]


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
        for pictures in [name, *(label for label, sets in real_groups(looks).items() if [label] == sets)]:
            flagged = values_of(looks, [pictures], level) <= ALPHA
            row = {"channel": channel, "set": pictures, "n": len(flagged)}
            rows.append({"table": "flagged", **row, **_interval(rate(flagged))})
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
    """How much is too damaged for a verdict, and AUC on the rest, after steps of the benchmark's `delivery`."""
    rows = []
    for step in DAMAGES:
        with tempfile.TemporaryDirectory() as place:
            harmed = []
            for picture, path in files:
                target = Path(place) / path.name
                with Image.open(path) as image:
                    target.write_bytes(STEPS[step].apply(image.convert("RGB")))
                harmed.append((picture, target))
            looks = look(detector, harmed, f"{step}, {name}")
        real, fake = (
            [one for one in looks if one.picture.label == "real"], [one for one in looks if one.picture.set == name]
        )  # fmt: skip
        unsure = {
            kind: rate([one.damaged for one in some]).value for kind, some in (("real", real), ("fake", fake))
        }
        sets = sorted({one.picture.set for one in real})
        scores = [values_of(looks, some) for some in (sets, [name])]
        row = {"step": step, "n": len(fake), "n_against": len(real)}
        row |= {f"unsure_{kind}": round(share, 4) for kind, share in unsure.items()}
        if min(map(len, scores)) >= LEAST:  # else there are too few left to compare
            row |= _interval(measures(*scores, threshold=0.0)["auc"])
        rows.append({"table": "damage", **row})
    return rows


def taught_rows(detector: Detector, judged: Sequence[Picture], name: str) -> list[Row]:
    """What LEAST pictures of the generator left out bring, on its other pictures; and what that does to others."""
    channel = known_of(detector)
    mine = sorted((p for p in judged if p.set == name), key=lambda picture: digest_of(picture.path))
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


# --- the page -------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> None:
    """docs/known.json, the tables in docs/known.md, and the reliability diagram."""
    rows = []
    with tempfile.TemporaryDirectory() as view:
        for spec in arguments.runs:
            name, _, some = spec.partition("=")
            runs = [Path(run) for run in some.split(",")]
            kept = _kept(runs)
            if not kept.exists():
                found = measure_runs(name, runs, arguments.corpus, Path(view))
                kept.with_suffix(".new").write_text(json.dumps(found))
                kept.with_suffix(".new").rename(kept)
            rows += json.loads(kept.read_text())
    DATA.write_text(json.dumps(rows, indent=0) + "\n")
    write_page(rows)


def _kept(runs: Sequence[Path]) -> Path:
    """Where the rows of some runs are kept, so that measuring can go on; they hold for what they were made with."""
    first = [SHIPPED / name for name in ("encoder.bin", "density.safetensors", "calibration.safetensors")]
    code = [Path(import_module(f"lensborn.{name}").__file__) for name in CODE]
    graph = ROOT / "src" / "lensborn" / "pretext" / "known.py"
    weights = [run / "best.safetensors" for run in runs]
    parts = (*weights, Path(__file__), graph, *first, *code)
    digest = hashlib.sha256("".join(map(digest_of, parts)).encode()).hexdigest()
    return runs[0] / f"measured-{digest[:16]}.json"


def write_page(rows: Sequence[Row]) -> None:
    """The tables between the marks of docs/known.md, and docs/reliability.svg."""
    for section, text in (
        ("auc", tables(rows)),
        ("unseen", unseen_table(rows)),
        ("signs", signs_table(rows)),
        ("conditional", conditional_table(rows)),
        ("damage", damage_table(rows)),
        ("taught", taught_table(rows)),
    ):
        write_block(PAGE, section, text)
    mine = [row for row in rows if row["table"] == "reliability" and row["condition"] != "published"]
    reliability_plot(_means(mine, ("kind", "bin"), ("given", "was")), PAGE.with_name("reliability.svg"))


def _means(rows: Sequence[Row], keys: Sequence[str], values: Sequence[str]) -> list[Row]:
    """Rows of equal `keys` as one: means of `values`, the number of `runs`, and the range of the first value."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        {
            **members[0],
            **{
                value: float(np.mean([row[value] for row in members]))
                for value in values
                if all(value in row for row in members)
            },
            "runs": len(members),
            "low_run": min(row.get(values[0], np.nan) for row in members),
            "high_run": max(row.get(values[0], np.nan) for row in members),
        }
        for members in groups.values()
    ]


def tables(rows: Sequence[Row]) -> str:
    """AUC and shares flagged, in Markdown: means over the runs that left out the same generator."""
    lines = []
    for condition in _conditions(rows):
        mine = [row for row in rows if row.get("condition") == condition]
        aucs = _means(
            [row for row in mine if row["table"] == "auc"],
            ("channel", "set", "against"),
            ("value", "low", "high"),
        )
        lines += [f"### {condition}", "", "AUC of the generator left out:", ""]
        lines += ["| left out | n | against | n | one-class | known | fused |", "| --- " * 7 + "|"]
        for key in dict.fromkeys((row["set"], row["against"]) for row in aucs):
            cells = {row["channel"]: row for row in aucs if (row["set"], row["against"]) == key}
            first = cells["known"]
            values = " | ".join(_cell(cells[channel]) for channel in SCORES)
            lines.append(f"| {key[0]} | {first['n']} | {key[1]} | {first['n_against']} | {values} |")
        together = [row for row in aucs if "+" in row["against"]]
        means = [np.mean([row["value"] for row in together if row["channel"] == c]) for c in SCORES]
        lines.append("| **mean** | | together | | " + " | ".join(f"**{mean:.3f}**" for mean in means) + " |")
        flagged = [row for row in mine if row["table"] == "flagged"]
        lines += [
            "",
            f"Flagged at a nominal {100 * ALPHA:g} %, of the generator left out and of photographs:",
            "",
        ]
        lines += ["| pictures | left out | n | one-class | known | verdict |", "| --- " * 6 + "|"]
        shares = _means(flagged, ("channel", "set", "left_out"), ("value", "low", "high"))
        for key in dict.fromkeys((row["set"], row["left_out"]) for row in shares):
            cells = {row["channel"]: row for row in shares if (row["set"], row["left_out"]) == key}
            values = " | ".join(_cell(cells[channel]) for channel in LEVELS)
            name = f"**{key[0]}**" if key[0] == key[1] else key[0]
            lines.append(f"| {name} | {key[1]} | {cells['known']['n']} | {values} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def unseen_table(rows: Sequence[Row]) -> str:
    """Shares flagged of a photographic set that was left out, and of its other half where half of it was shown, in
    Markdown: means over runs."""
    left_out = {row["left_out"] for row in rows if row["table"] == "unseen"}
    lines = ["| condition | photographs | shown | n | one-class | known | verdict |", "| --- " * 7 + "|"]
    for condition, name in product(_conditions(rows), sorted(left_out)):
        for shown, table in (("none", "unseen"), ("half", "flagged")):
            mine = [
                row
                for row in rows
                if row["table"] == table
                and (row["condition"], row["set"]) == (condition, name)
                and (table == "flagged" or row["left_out"] == name)
            ]
            cells = {row["channel"]: row for row in _means(mine, ("channel",), ("value", "low", "high"))}
            values = " | ".join(_cell(cells[channel]) for channel in LEVELS)
            lines.append(f"| {condition} | {name} | {shown} | {cells['known']['n']} | {values} |")
    return "\n".join(lines)


def _conditions(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["condition"] for row in rows if "condition" in row))


def signs_table(rows: Sequence[Row]) -> str:
    """Either sign by itself and the greater of the two, equalised, in Markdown: means over runs."""
    mine = [row for row in rows if row["table"] == "signs" and row["condition"] != "published"]
    names = list(dict.fromkeys(row["left_out"] for row in mine))
    found = {(row["way"], row["left_out"]): row for row in _means(mine, ("way", "left_out"), ("value",))}
    lines = [f"| {SIDE} px, AUC of the generator left out | {' | '.join(names)} | mean |"]
    lines.append("| --- " * (len(names) + 2) + "|")
    for way in dict.fromkeys(row["way"] for row in mine):
        values = [found[way, name]["value"] for name in names]
        lines.append(f"| {way} | {' | '.join(f'{v:.3f}' for v in values)} | {np.mean(values):.3f} |")
    return "\n".join(lines)


def conditional_table(rows: Sequence[Row]) -> str:
    """Three calibrations side by side, in Markdown: false alarms by set, means over all runs."""
    mine = [row for row in rows if row["table"] == "conditional"]
    lines = [
        "| condition | channel | photographs | corpus alone | as shipped | given delivery |",
        "| --- " * 6 + "|",
    ]
    shares = _means(mine, ("condition", "channel", "way", "set"), ("value", "auc", "explained"))
    keys = dict.fromkeys((row["condition"], row["channel"], row["set"]) for row in shares)
    for key in keys:
        cells = [row for row in shares if (row["condition"], row["channel"], row["set"]) == key]
        values = " | ".join(f"{100 * row['value']:.1f} %, {row['auc']:.3f}" for row in cells)
        lines.append(f"| {' | '.join(key)} | {values} |")
    explained = _means(mine, ("condition", "channel"), ("explained",))
    said = ", ".join(f"{row['channel']} {row['condition']} {row['explained']:.2f}" for row in explained)
    return "\n".join(
        [*lines, "", f"Share of a score's variance on photographs that delivery explains: {said}."]
    )


def damage_table(rows: Sequence[Row]) -> str:
    """What is too damaged for a verdict, in Markdown: means over the runs that left out the same generator."""
    mine = [row for row in rows if row["table"] == "damage"]
    lines = [
        "| step | left out | photographs unsure | generated unsure | AUC of the rest |",
        "| --- " * 5 + "|",
    ]
    for row in _means(mine, ("step", "left_out"), ("value", "low", "high", "unsure_real", "unsure_fake")):
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("unsure_real", "unsure_fake"))
        auc = _cell(row) if "value" in row else "too few"
        lines.append(f"| {row['step']} | {row['left_out']} | {shares} | {auc} |")
    return "\n".join(lines)


def taught_table(rows: Sequence[Row]) -> str:
    """What a lesson brings, in Markdown: means over the runs that left out the same generator."""
    mine = [row for row in rows if row["table"] == "taught"]
    lines = ["| taught | AUC of | n | before | after | seconds |", "| --- " * 6 + "|"]
    for row in _means(mine, ("left_out", "set"), ("value", "low", "high", "before", "seconds")):
        name = f"**{row['set']}**" if row["taught"] else row["set"]
        lines.append(
            f"| {row['left_out']} ({row['pictures']} pictures) | {name} | {row['n']} | {row['before']:.3f} | "
            f"{_cell(row)} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _cell(row: Row) -> str:
    several = row["low_run"] != row["high_run"]
    runs = f" ({row['low_run']:.3f} to {row['high_run']:.3f})" if several else ""
    return f"{_short(row)}{runs}"


# --- shipping -------------------------------------------------------------------------------------------


def ship(arguments: argparse.Namespace) -> None:
    """The shipped bundle, with the channel of some runs."""
    base = Detector.load(arguments.base)
    channel = known_of(with_channel(base, arguments.runs, arguments.corpus, [], whole=True))
    rows = json.loads(DATA.read_text()) if DATA.exists() else []
    kept = _means(
        [row for row in rows if row["table"] == "auc" and "+" in row["against"]],
        ("condition", "channel", "set"),
        ("value", "low", "high"),
    )
    part = KnownPart(channel.head, {**channel.part.manifest, "measured": kept}, channel.part.seen)
    first = base.card.split(MARK)[0].split("\n", 1)[1]
    text = f"# {NAME}\n{first}{MARK}{card(part, rows)}"
    detector = base.with_known(KnownChannel(channel.xml, part), name=NAME, card=text)
    bundle = detector.save(arguments.out, overwrite=True)
    print(bundle.sha256, bundle.manifest[KNOWN_KEY]["sets"])
    write_block(ROOT / "README.md", "known", readme_table(rows, bundle.sha256))


MARK = "\n## The second channel\n"


def readme_table(rows: Sequence[Row], sha256: str) -> str:
    """The README's table of the known channel, in Markdown."""
    channels = len({row["seed"] for row in rows})
    lines = [
        f"Model `{NAME}`, sha256 `{sha256[:16]}…`; its known channel was shown all three generators. Here each is "
        f"left out in turn, by channels made alike; means of {channels} channels, 95 % intervals; by "
        "`tools/known.py`; more in [docs/known.md](docs/known.md).",
        "",
        "| protocol | generator left out | AUC, first channel | AUC, known channel | AUC, both | found at 5 % |",
        "| --- " * 6 + "|",
    ]
    aucs = _means(
        [row for row in rows if row["table"] == "auc" and "+" in row["against"]],
        ("condition", "channel", "set"),
        ("value", "low", "high"),
    )
    found = _means(
        [
            row
            for row in rows
            if row["table"] == "flagged" and row["set"] == row["left_out"] and row["channel"] == "verdict"
        ],
        ("condition", "channel", "set"),
        ("value", "low", "high"),
    )
    cells = {(row["condition"], row["channel"], row["set"]): row for row in aucs + found}
    for condition, name in dict.fromkeys((row["condition"], row["set"]) for row in aucs):
        each = " | ".join(_short(cells[condition, channel, name]) for channel in SCORES)
        flagged = cells[condition, "verdict", name]
        share = (
            f"{100 * flagged['value']:.0f} % [{100 * flagged['low']:.0f} %, {100 * flagged['high']:.0f} %]"
        )
        lines.append(f"| {condition} | {name} | {each} | {share} |")
    return "\n".join(lines)


def _short(row: Row) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def card(part: KnownPart, rows: Sequence[Row]) -> str:
    """What the model card says of the channel."""
    memory = part.head.memory
    shown = ", ".join(
        name for name, generated in zip(memory.names, memory.generated, strict=True) if generated
    )
    populations = ", ".join(
        f"{name} ({memory.first[rows].sum()})" for name, rows in memory.populations().items()
    )
    return f"""
Everything above is about the first channel, which never saw a generated picture; its files are the same with this
channel and without. The known channel was shown generated faces of {shown}, against photographs, patch by
patch ({part.manifest["patch"]} px of a face at {part.manifest["side"]} px). It says how much a face looks
like those, or unlike all photographs; of a generator that it was not shown it may say nothing. Calibrated on
{populations} faces as they are and as sites hand them on; a p-value is the largest over these
populations. The verdict is by the sum of both channels' scores, calibrated on the same faces.
Faces whose crop is below {part.manifest["least_side"]} px get no such score.

How it does on a generator left out (channels trained without it; `python tools/known.py measure`):

{tables(rows)}
"""


def main() -> None:
    """See the module's head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    for verb in (train, measure, ship):
        sub = verbs.add_parser(verb.__name__)
        sub.set_defaults(run_verb=verb)
        sub.add_argument("--corpus", type=Path, required=True)
        if verb is train:
            sub.add_argument("--start", type=Path, required=True)
            sub.add_argument("--out", type=Path, required=True)
            sub.add_argument("--leave-out", nargs="*", default=[])
            sub.add_argument("--seed", type=int, default=0)
            sub.add_argument("--threads", type=int, default=1)
        elif verb is measure:
            sub.add_argument("--runs", nargs="+", required=True, metavar="SET=RUN,RUN,..")
        else:
            sub.add_argument("--runs", type=Path, nargs="+", required=True)
            sub.add_argument("--base", type=Path, default=SHIPPED)
            sub.add_argument("--out", type=Path, default=SHIPPED.with_name(NAME))
    arguments = parser.parse_args()
    arguments.run_verb(arguments)


if __name__ == "__main__":
    main()
