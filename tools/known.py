"""Trains, measures and ships the known channel.

    python tools/known.py train --corpus FOLDER --init CHECKPOINT --out RUN [--leave-out SET ...] [--seed N]
    python tools/known.py measure --corpus FOLDER --runs SET=RUN ...
    python tools/known.py ship --corpus FOLDER --run RUN

FOLDER holds photos.csv and faces.csv with their pictures. Training sees the sources "train" of the corpus, half of
FFHQ and CelebA-HQ, and 85 % of each generated set; never the portraits, which stand for photographs of sources that
it does not know. `measure` takes runs that left out one generator each, and writes docs/known.md: what the channel
says of that generator. `ship` puts a channel that saw all of them beside the shipped first channel, whose files it
does not touch.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, track

from lensborn.bench.delivery import equalise
from lensborn.bench.metrics import Interval, measures, rate
from lensborn.bundle import KNOWN_KEY, SHIPPED, KnownPart
from lensborn.datasets.corpus import read_corpus, split_of
from lensborn.datasets.pictures import Picture, pictures_of_table
from lensborn.detector import Detector, FaceVerdict, combined_p
from lensborn.faces import FaceFinder, crop_face, crop_square
from lensborn.known import KnownChannel, KnownLook
from lensborn.logistic import CALIBRATE, LEARN, KnownHead, Memory
from lensborn.photo import decode_photo, digest_of
from lensborn.teach import Studied, study

ROOT = Path(__file__).parent.parent
NAME = "lensborn-2"
SHARE = 0.8  # of alpha for the known channel: the first one, alone, sees little (docs/results)
UNSEEN = "portraits"
PHOTOS = "photos"
LEARNT = 800  # photographs of the corpus to learn the head from, and remember
CALIBRATED = ("calibrate",)  # splits of the corpus
SIDE = 192  # px: every face is measured at this size, too
ALPHA = 0.05

Row = tuple[Picture, str, FaceVerdict | None]


def labelled(folder: Path) -> list[Picture]:
    """The pictures of faces.csv."""
    return pictures_of_table(folder / "faces.csv")


def splits_of(folder: Path, leave_out: Sequence[str]) -> dict[str, list[Picture]]:
    """The labelled pictures that may be seen, by split of `pretext.known`; one half of what is judged calibrates.

    Photographs that calibrate are of "calibrate"; "judge" and what was left out is measured alone.
    """
    from lensborn.pretext.known import picture_split  # noqa: PLC0415

    splits: dict[str, list[Picture]] = {"train": [], "validate": [], "calibrate": [], "judge": []}
    for picture in labelled(folder):
        split = "judge" if picture.set in (*leave_out, UNSEEN) else str(picture_split(picture))
        if split == "judge" and picture.set not in (*leave_out, UNSEEN) and picture.label == "real":
            split = split_of(f"calibrate/{picture.name}", (("calibrate", 0.5), ("judge", 0.5)))
        if split == "validate" and picture.label == "real":
            split = "calibrate"
        splits[split].append(picture)
    return splits


def train(arguments: argparse.Namespace) -> None:
    """One run."""
    import torch  # noqa: PLC0415

    from lensborn.pretext import known  # noqa: PLC0415

    torch.set_num_threads(arguments.threads)
    leave_out = (*arguments.leave_out, UNSEEN)
    pictures = [picture for picture in labelled(arguments.corpus) if picture.set not in leave_out]
    crops = known.photo_examples(read_corpus(arguments.corpus))
    parts = {
        split: known.picture_examples([p for p in pictures if known.picture_split(p) == split])
        for split in ("train", "validate")
    }
    settings = known.KnownSettings(
        init=str(arguments.init), seed=arguments.seed, leave_out=leave_out, lr=1e-3
    )
    with Progress() as bar:
        task = bar.add_task("training", total=settings.epochs * settings.steps)
        trainer = known.KnownTrainer(
            settings,
            crops["train"] + parts["train"],
            crops["validate"][::4] + parts["validate"],
            arguments.out,
            progress=lambda done, _, means: bar.update(task, completed=done),
        )
        trainer.fit()
    known.export_known(arguments.out)


def channel_of(run: Path, folder: Path, leave_out: Sequence[str], *, whole: bool) -> KnownChannel:
    """A channel whose head learnt and calibrated on what the run may see; `whole`: nothing is kept to judge."""
    from lensborn.pretext.known import FEATURE_DIM, export_known  # noqa: PLC0415

    settings = json.loads((run / "settings.json").read_text())
    if set(settings["leave_out"]) != {*leave_out, UNSEEN}:
        raise SystemExit(f"{run} left out {settings['leave_out']}, not {[*leave_out, UNSEEN]}")
    empty = Memory.empty(FEATURE_DIM).add("nothing", False, np.zeros((1, FEATURE_DIM)), CALIBRATE)
    manifest = {
        **asdict(KnownLook(patch=settings["patch"])),
        "share": SHARE,
        "training": {name: settings[name] for name in ("backbone", "epochs", "steps", "batch", "lr", "seed")},
    }
    blank = KnownPart(KnownHead(np.zeros(FEATURE_DIM), 0.0, empty), manifest)
    channel = KnownChannel(export_known(run), blank)
    scale = Detector.load().preprocessing.crop_scale

    def features(paths: Sequence[Path], rows: Callable[[Studied], Any], what: str) -> Any:
        found = track(study(paths, channel, scale), what, total=len(paths))
        return np.concatenate([rows(face) for face in found if face is not None])

    memory = Memory.empty(FEATURE_DIM)
    seen: list[Path] = []
    corpus = read_corpus(folder)
    rng = np.random.default_rng(0)
    learnt = [crop.file for crop in corpus if split_of(crop.source) == "train"]
    learnt = [learnt[number] for number in rng.permutation(len(learnt))[:LEARNT]]
    calibrated = [crop.file for crop in corpus if split_of(crop.source) in CALIBRATED]
    memory = memory.add(PHOTOS, False, features(learnt, lambda f: f.delivered, PHOTOS), LEARN)
    memory = memory.add(PHOTOS, False, features(calibrated, lambda f: f.for_calibration, PHOTOS), CALIBRATE)
    splits = splits_of(folder, leave_out)
    for name in dict.fromkeys(picture.set for picture in labelled(folder)):
        if name in (*leave_out, UNSEEN):
            continue
        mine = {split: [p for p in pictures if p.set == name] for split, pictures in splits.items()}
        generated = mine["train"][0].label == "fake"
        paths = [picture.path for picture in mine["train"]]
        memory = memory.add(name, generated, features(paths, lambda f: f.delivered, name), LEARN)
        seen += paths + [picture.path for picture in mine["validate"]]
        if not generated:
            paths = [p.path for p in mine["calibrate"] + (mine["judge"] if whole else [])]
            memory = memory.add(name, False, features(paths, lambda f: f.for_calibration, name), CALIBRATE)
            seen += paths
    prefixes = frozenset(digest_of(path)[:16] for path in seen)
    return KnownChannel(channel.xml, KnownPart(KnownHead.learn(memory), manifest, prefixes))


def equalised(pictures: Iterable[Picture], folder: Path) -> Iterator[tuple[Picture, Path | None]]:
    """Each picture's largest face at SIDE px as JPEG, in files; None without a face of that side / 1.2 or more."""
    finder = FaceFinder()
    for number, picture in enumerate(pictures):
        pixels = decode_photo(picture.read()).pixels
        faces = finder.find(pixels)
        if not faces or crop_square(faces[0].box, pixels.shape[1], pixels.shape[0])[2] * 1.2 < SIDE:
            yield picture, None
            continue
        path = folder / f"{number:05d}.jpg"
        path.write_bytes(equalise(crop_face(pixels, faces[0].box, SIDE)))
        yield picture, path


def judged(detector: Detector, files: Sequence[tuple[Picture, Path | None]], condition: str) -> list[Row]:
    """The verdict on the largest face of each file, None where there is none."""
    there = [(picture, path) for picture, path in files if path is not None]
    found = detector.detect_many(path for _, path in there)
    return [
        (picture, condition, detection.faces[0] if detection.faces else None)
        for (picture, _), detection in zip(there, track(found, condition, total=len(there)), strict=True)
    ]


SCORES: dict[str, Callable[[FaceVerdict], float]] = {
    "one-class": lambda face: face.score,
    "known": lambda face: face.known_generator.score if face.known_generator else np.nan,
    "fused": lambda face: -np.log(combined_p(face.p_value, face.known_generator, SHARE)),
}
LEVELS: dict[str, Callable[[FaceVerdict], float]] = {
    "one-class": lambda face: face.p_value,
    "known": lambda face: face.known_generator.p_value if face.known_generator else 1.0,
    "verdict": lambda face: combined_p(face.p_value, face.known_generator, SHARE),
}


def scored(
    rows: Sequence[Row], sets: Sequence[str], score: Callable[[FaceVerdict], float]
) -> np.ndarray[Any, Any]:
    """The scores of some sets, those that are numbers."""
    values = np.array([score(face) for picture, _, face in rows if face and picture.set in sets])
    return values[np.isfinite(values)]


def measure_run(name: str, run: Path, folder: Path) -> list[dict[str, Any]]:
    """Rows of numbers about the generator that a run left out, and about photographs that it did not see."""
    channel = channel_of(run, folder, [name], whole=False)
    detector = Detector.load().with_known(channel, name=f"without {name}")
    photos = [
        Picture(crop.file, crop.row["file"], PHOTOS, "real", crop.source)
        for crop in read_corpus(folder)
        if split_of(crop.source) == "test"
    ]
    pictures = splits_of(folder, [name])["judge"] + photos
    with tempfile.TemporaryDirectory() as place:
        conditions = {
            "published": [(picture, picture.path) for picture in pictures],
            f"equalised-{SIDE}": list(equalised(track(pictures, "equalising"), Path(place))),
        }
        return [
            row
            for condition, files in conditions.items()
            for row in numbers(judged(detector, files, condition), name, condition)
        ]


def numbers(rows: Sequence[Row], name: str, condition: str) -> list[dict[str, Any]]:
    """AUC of the generator against each photographic set and three together; shares flagged, set by set."""
    real_sets = sorted({picture.set for picture, _, _ in rows if picture.label == "real"})
    together = [real for real in real_sets if real != PHOTOS]
    found = []
    for channel, score in SCORES.items():
        fake = scored(rows, [name], score)
        for label, sets in [(" + ".join(together), together), *((real, [real]) for real in real_sets)]:
            real = scored(rows, sets, score)
            interval = measures(real, fake, threshold=0.0)["auc"]
            found.append(_row(condition, "AUC", channel, name, label, len(fake), len(real), interval))
    for channel, level in LEVELS.items():
        for pictures in [name, *real_sets]:
            flagged = scored(rows, [pictures], level) <= ALPHA
            measure = "found" if pictures == name else "false alarms"
            found.append(_row(condition, measure, channel, pictures, name, len(flagged), 0, rate(flagged)))
    return found


def _row(
    condition: str,
    measure: str,
    channel: str,
    pictures: str,
    against: str,
    n: int,
    n_against: int,
    value: Interval,
) -> dict[str, Any]:
    return {
        "condition": condition,
        "measure": measure,
        "channel": channel,
        "set": pictures,
        "against": against,
        "n": n,
        "n_against": n_against,
        **{key: round(number, 4) for key, number in value._asdict().items()},
    }


def measure(arguments: argparse.Namespace) -> None:
    """docs/known.json and the table in docs/known.md."""
    rows = []
    for spec in arguments.runs:
        name, _, run = spec.partition("=")
        rows += measure_run(name, Path(run), arguments.corpus)
    (ROOT / "docs" / "known.json").write_text(json.dumps(rows, indent=1) + "\n")
    page = ROOT / "docs" / "known.md"
    before, rest = page.read_text().split("<!-- measured:begin -->")
    after = rest.split("<!-- measured:end -->")[1]
    page.write_text(f"{before}<!-- measured:begin -->\n{tables(rows)}\n<!-- measured:end -->{after}")


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """The tables of docs/known.md."""
    lines = []
    for condition in dict.fromkeys(row["condition"] for row in rows):
        mine = [row for row in rows if row["condition"] == condition]
        lines += [f"### {condition}", "", "AUC of the generator left out:", ""]
        lines += ["| left out | n | against | n | one-class | known | fused |", "| --- " * 7 + "|"]
        aucs = [row for row in mine if row["measure"] == "AUC"]
        for key in dict.fromkeys((row["set"], row["against"]) for row in aucs):
            cells = {row["channel"]: row for row in aucs if (row["set"], row["against"]) == key}
            first = cells["known"]
            values = " | ".join(_cell(cells[channel]) for channel in SCORES)
            lines.append(f"| {key[0]} | {first['n']} | {key[1]} | {first['n_against']} | {values} |")
        means = {
            channel: np.mean([r["value"] for r in aucs if r["channel"] == channel and "+" in r["against"]])
            for channel in SCORES
        }
        lines.append("| mean | | together | | " + " | ".join(f"{means[c]:.3f}" for c in SCORES) + " |")
        lines += ["", f"Flagged at a nominal {100 * ALPHA:g} %:", ""]
        lines += ["| pictures | left out | n | one-class | known | verdict |", "| --- " * 6 + "|"]
        shares = [row for row in mine if row["measure"] != "AUC"]
        for key in dict.fromkeys((row["set"], row["against"]) for row in shares):
            cells = {row["channel"]: row for row in shares if (row["set"], row["against"]) == key}
            values = " | ".join(_cell(cells[channel]) for channel in LEVELS)
            name = f"**{key[0]}**" if key[0] == key[1] else key[0]
            lines.append(f"| {name} | {key[1]} | {cells['known']['n']} | {values} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _cell(row: dict[str, Any]) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def ship(arguments: argparse.Namespace) -> None:
    """The shipped bundle, with its channel."""
    channel = channel_of(arguments.run, arguments.corpus, [], whole=True)
    measured = ROOT / "docs" / "known.json"
    rows = json.loads(measured.read_text()) if measured.exists() else []
    kept = [row for row in rows if "+" in row["against"] or row["measure"] == "false alarms"]
    part = KnownPart(channel.head, {**channel.part.manifest, "measured": kept}, channel.part.seen)
    base = Detector.load(arguments.base)
    text = f"{base.card.split(MARK)[0]}{MARK}{card(part, rows)}"
    detector = base.with_known(KnownChannel(channel.xml, part), name=NAME, card=text)
    bundle = detector.save(arguments.out, overwrite=True)
    print(bundle.sha256, bundle.manifest[KNOWN_KEY]["sets"])


MARK = "\n## The second channel\n"


def card(part: KnownPart, rows: Sequence[dict[str, Any]]) -> str:
    """What the model card says of the channel."""
    memory = part.head.memory
    shown = ", ".join(
        name for name, generated in zip(memory.names, memory.generated, strict=True) if generated
    )
    populations = ", ".join(f"{name} ({mask.sum()})" for name, mask in memory.populations().items())
    return f"""
Everything above is about the first channel, which never saw a generated picture; its files are the same with this
channel and without. The known channel was shown generated faces of {shown}, against photographs, patch by
patch ({part.manifest["patch"]} px of a face at {part.manifest["side"]} px). It says how much a face looks
like those; of a generator that it was not shown it may say nothing. Calibrated on {populations} faces as they are
and as sites hand them on; a p-value is the largest over these populations. Of alpha,
{100 * part.manifest["share"]:g} % are its own.
Faces whose crop is below {part.manifest["least_side"]} px get no such score.

How it does on a generator left out (a channel trained without it; `python tools/known.py measure`):

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
            sub.add_argument("--init", type=Path, required=True)
            sub.add_argument("--out", type=Path, required=True)
            sub.add_argument("--leave-out", nargs="*", default=[])
            sub.add_argument("--seed", type=int, default=0)
            sub.add_argument("--threads", type=int, default=2)
        elif verb is measure:
            sub.add_argument("--runs", nargs="+", required=True, metavar="SET=RUN")
        else:
            sub.add_argument("--run", type=Path, required=True)
            sub.add_argument("--base", type=Path, default=SHIPPED)
            sub.add_argument("--out", type=Path, default=SHIPPED.with_name(NAME))
    arguments = parser.parse_args()
    arguments.run_verb(arguments)


if __name__ == "__main__":
    main()
