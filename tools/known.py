"""Trains, measures and ships the known channel.

    python tools/known.py train --corpus FOLDER --start RUNG --out RUN [--leave-out SET ...] [--seed N]
    python tools/known.py measure --corpus FOLDER --runs SET=RUN,RUN,RUN ...
    python tools/known.py ship --corpus FOLDER --runs RUN RUN RUN [--base BUNDLE]

FOLDER holds photos.csv and faces.csv with their pictures. Training begins from a rung "base" of the ladder
(`ladder.py`), which the five tasks trained on photographs alone, and changes its last stage. It sees the sources
"train" of the corpus, half of FFHQ and CelebA-HQ, and 85 % of each generated set; never the portraits. Many of
these are of sources that the corpus has, too: only those of sources that were not learnt from are judged.
Runs of several seeds that began from one rung share all but their last stage, and make one channel together.
`measure` takes such runs that left out one generator each, several times where there are, and writes
docs/known.json and the tables of docs/known.md: what the channel says of that generator, how its probabilities
hold, what a calibration given delivery would change, what damage does, and what `lensborn teach` brings. Of runs
that left out a photographic set, what share of it is flagged; of those that left out both,
whose SET is PHOTOGRAPHS+GENERATOR, how well they are told apart. Its first channel is that of the shipped bundle.
`ship` puts a channel of runs that saw all of them beside the first channel of BASE (the shipped bundle if left
out), whose files it does not touch, and writes the shipped bundle and the README's second table: before measuring,
where the first channel is new, and after it, with the tables in the card.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import known_looks
import known_rows
import numpy as np
from known_looks import (
    EQUALISED,
    PHOTOS,
    UNSEEN,
    Conditions,
    equalised_once,
    labelled,
    photographs,
    placed,
    splits_of,
)
from known_page import aucs_together, card, readme_table, write_page
from known_rows import Row, generator_rows, unseen_damage_rows, unseen_pair_rows, unseen_rows
from rich.progress import Progress, track

from lensborn.bench.render import write_block
from lensborn.bundle import KNOWN_KEY, SHIPPED, KnownPart
from lensborn.datasets.corpus import read_corpus
from lensborn.detector import Detector
from lensborn.features import Encoder
from lensborn.known import KnownChannel, KnownLook
from lensborn.known_head import KnownHead
from lensborn.memory import CALIBRATE, LEARN, Memory
from lensborn.photo import digest_of
from lensborn.teach import Studied, known_of, remembering, study

if TYPE_CHECKING:
    from lensborn.pretext.known import Example

ROOT = Path(__file__).parent.parent
PAGE, DATA = ROOT / "docs" / "known.md", ROOT / "docs" / "known.json"
NAME = "lensborn-11"
MARK = "\n## The second channel\n"  # in a card, where what it says of the first channel ends
LEARNT = 400  # photographs of the corpus to learn the head from, and remember, of each of two splits
#: Modules whose code measured numbers depend on, beside the tools and `pretext.known`.
CODE = (
    *("contrast", "delivery", "detector", "faces", "features", "known", "known_head", "memory"),
    *("normal_scores", "signs", "strangeness", "teach", "pretext.model"),
)


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


def measure_runs(name: str, runs: Sequence[Path], folder: Path, view: Path) -> list[Row]:
    """Rows of numbers about what runs left out, a generator, a photographic set or both, joined by +; and about
    photographs that they did not see.

    `view`: a folder for the equalised files, which serve for every run.
    """
    leave_out = name.split("+")
    detector = with_channel(Detector.load(), runs, folder, leave_out, whole=False)
    splits = splits_of(folder, leave_out)
    equal = {picture.name: path for picture, path in equalised_once(folder, view)}
    conditions: Conditions = {
        "published": lambda picture: picture.path,
        EQUALISED: lambda picture: equal.get(picture.name),
    }
    mine = [picture for picture in splits["judge"] if picture.set in leave_out]
    kinds = [next((p.label for p in mine if p.set == one), None) for one in leave_out]
    if kinds == ["real"]:
        rows = unseen_rows(detector, mine, conditions)
        rows += unseen_damage_rows(detector, placed(mine, conditions[EQUALISED]), name)
    elif kinds == ["real", "fake"]:
        rows = unseen_pair_rows(detector, mine, conditions)
    elif kinds == ["fake"]:
        rows = generator_rows(detector, name, splits["judge"], folder, conditions)
    else:
        raise SystemExit(f"{name} is no generator, photographic set or PHOTOGRAPHS+GENERATOR of faces.csv")
    seed = json.loads((runs[0] / "settings.json").read_text())["seed"]
    return [{"left_out": name, "seed": seed, **row} for row in rows]


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
    write_page(rows, PAGE)


def _kept(runs: Sequence[Path]) -> Path:
    """Where the rows of some runs are kept, so that measuring can go on; they hold for what they were made with."""
    first = [SHIPPED / name for name in ("encoder.bin", "density.safetensors", "calibration.safetensors")]
    code = [Path(import_module(f"lensborn.{name}").__file__) for name in CODE]
    graph = ROOT / "src" / "lensborn" / "pretext" / "known.py"
    weights = [run / "best.safetensors" for run in runs]
    tools = [Path(file) for file in (__file__, known_looks.__file__, known_rows.__file__)]
    parts = (*weights, *tools, graph, *first, *code)
    digest = hashlib.sha256("".join(map(digest_of, parts)).encode()).hexdigest()
    return runs[0] / f"measured-{digest[:16]}.json"


def ship(arguments: argparse.Namespace) -> None:
    """The shipped bundle, with the channel of some runs."""
    base = Detector.load(arguments.base)
    channel = known_of(with_channel(base, arguments.runs, arguments.corpus, [], whole=True))
    rows = json.loads(DATA.read_text()) if DATA.exists() else []
    manifest = {**channel.part.manifest, "measured": aucs_together(rows)}
    part = KnownPart(channel.head, manifest, channel.part.seen)
    first = base.card.split(MARK)[0].split("\n", 1)[1]
    text = f"# {NAME}\n{first}{MARK}{card(part, rows)}"
    detector = base.with_known(KnownChannel(channel.xml, part), name=NAME, card=text)
    bundle = detector.save(arguments.out, overwrite=True)
    print(bundle.sha256, bundle.manifest[KNOWN_KEY]["sets"])
    write_block(ROOT / "README.md", "known", readme_table(rows, NAME, bundle.sha256))


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
