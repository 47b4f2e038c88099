"""Three ways in which the pretext tasks could help the known channel, or not, beside the way that is shipped.

    python tools/known_ways.py train --corpus FOLDER --init CHECKPOINT --ladder LADDER --out OUT [--only RUN ...]
    python tools/known_ways.py measure --corpus FOLDER --ladder LADDER --out OUT --last SET=RUN ...

The encoder that the tasks trained is the rung "base" of the ladder (`ladder.py`): the same network, patch and
delivery as the known channel's, photographs alone. What is shipped, "last", are the runs of `known.py train`: its
last stage learns to tell photographs from generated faces. Each other way leaves out one generator at a time, too:

- alone: a network from ImageNet weights learns that, without the tasks;
- frozen: the encoder's features as they are;
- joint: a network from ImageNet weights learns that and the five tasks at once.

`measure` writes the table of docs/known.md.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from known import PAGE, training_examples, with_channel
from known_looks import SIDE, UNSEEN, equalised_once, look, splits_of
from known_rows import auc_rows
from ladder import FEATURES, Rung, Rungs
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lensborn.bench.render import markdown_head, write_block
from lensborn.datasets.corpus import TAGS, read_corpus
from lensborn.detector import Detector
from lensborn.pretext import known
from lensborn.pretext.corpus import EpochBatches, split_crops
from lensborn.pretext.loop import BEST, CHECKPOINT
from lensborn.pretext.losses import manipulation_loss, ranking_loss

WAYS = ("alone", "frozen", "joint")
GENERATORS = ("stylegan1", "stylegan2", "sd2.1")


class Joint(known.KnownTrainer):
    """Learns the five tasks beside its own, from batches of photographs. It cannot be resumed: the tasks' heads are
    not kept."""

    def learn_from(self, photographs: Iterator[dict[str, Tensor]]) -> None:
        """Where batches of photographs come from; the heads of the tasks."""
        self.photographs = photographs
        heads = nn.Linear(FEATURES, len(TAGS) + 1)  # the tags' and, last, that of manipulated faces
        self.heads = heads.to(self.device)
        self.optimiser.add_param_group({"params": self.heads.parameters(), "lr": self.settings.lr})

    def losses(self, network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of its own loss and of the five tasks, each task's a fifth."""
        loss, numbers = super().losses(network, batch)
        photos = next(self.photographs)
        count = len(photos["pristine"])
        seen = self.crops(torch.cat([photos["pristine"], photos["manipulated"]]))
        scores = self.heads(self.model.encoder(seen).float())
        tags, photo = photos["tags"].to(self.device), photos["photo"].to(self.device)
        ranking = ranking_loss(scores[:count, :-1], tags, photo).per_tag.sum()
        spotting = manipulation_loss(scores[:, -1], torch.arange(2 * count, device=self.device) >= count)
        return loss + (ranking + spotting) / 5, {**numbers, "loss_tasks": ranking + spotting}


def endless(corpus: Path, seed: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the photographs that training may see, pristine and manipulated."""
    crops = split_crops(read_corpus(corpus))["train"]
    rung = Rung(seed=seed)
    batches = EpochBatches([crop.source for crop in crops], 16, seed, rung.per_source)
    loader = DataLoader(Rungs(crops, rung, _no_trace), batch_sampler=batches, num_workers=1)
    while True:
        yield from loader
        batches.epoch += 1


def _no_trace(*_: Any) -> Any:
    raise AssertionError("no trace is destroyed here")


def train(arguments: argparse.Namespace) -> None:
    """The runs WAY-GENERATOR that are not there yet."""
    torch.set_num_threads(1)
    for way in WAYS:
        for generator in GENERATORS:
            out = arguments.out / f"{way}-{generator}"
            wanted = not arguments.only or {way, out.name} & set(arguments.only)
            if wanted and not (out / "card.json").exists():
                train_one(way, generator, out, arguments)


def train_one(way: str, generator: str, out: Path, arguments: argparse.Namespace) -> None:
    """One run."""
    leave_out = (generator, UNSEEN)
    settings = known.KnownSettings(init=str(arguments.init), seed=0, leave_out=leave_out)
    if way == "frozen":
        out.mkdir(parents=True, exist_ok=True)
        model = known.KnownModel(settings.backbone)
        known.begin_from(model.encoder, arguments.ladder / "base-0" / BEST)
        save_file(model.state_dict(), out / BEST)
        (out / "settings.json").write_text(json.dumps(asdict(settings)))
        (out / "card.json").write_text("{}")
        return
    with Progress() as bar:
        task = bar.add_task(out.name, total=settings.epochs * settings.steps)
        trainer = (Joint if way == "joint" else known.KnownTrainer)(
            settings,
            *training_examples(arguments.corpus, leave_out),
            out,
            progress=lambda done, _, means: bar.update(task, completed=done),
        )
        if isinstance(trainer, Joint):
            if (out / CHECKPOINT).exists():
                raise SystemExit(f"{out} was cut off and cannot go on: remove it")
            trainer.learn_from(endless(arguments.corpus, settings.seed))
        trainer.fit()


def measure(arguments: argparse.Namespace) -> None:
    """The table of docs/known.md."""
    last = dict(spec.split("=", 1) for spec in arguments.last)
    runs = {("last", generator): Path(last[generator]) for generator in GENERATORS}
    runs |= {
        (way, generator): arguments.out / f"{way}-{generator}" for way in WAYS for generator in GENERATORS
    }
    found: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as view:
        equal = {p.name: path for p, path in equalised_once(arguments.corpus, Path(view))}
        for (way, generator), run in runs.items():
            kept = run / "ways.json"
            if not kept.exists():
                detector = with_channel(Detector.load(), [run], arguments.corpus, [generator], whole=False)
                judged = splits_of(arguments.corpus, [generator])["judge"]
                looks = look(detector, [(p, equal[p.name]) for p in judged if p.name in equal], run.name)
                rows = [row for row in auc_rows(looks, generator) if row["channel"] == "known"]
                kept.write_text(json.dumps(next(row for row in rows if "+" in row["against"])))
            found[way, generator] = json.loads(kept.read_text())
    lines = markdown_head(f"{SIDE} px, AUC of the generator left out", *GENERATORS, "mean")
    for way in (*WAYS, "last"):
        rows = [found[way, generator] for generator in GENERATORS]
        cells = [f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for row in rows]
        lines.append(f"| {way} | {' | '.join(cells)} | {sum(row['value'] for row in rows) / len(rows):.3f} |")
    write_block(PAGE, "ways", "\n".join(lines))


def main() -> None:
    """See the module's head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    for verb, what in (("train", train), ("measure", measure)):
        command = verbs.add_parser(verb)
        command.set_defaults(run=what)
        for name in ("corpus", "ladder", "out"):
            command.add_argument(f"--{name}", type=Path, required=True)
    verbs.choices["train"].add_argument("--init", type=Path, required=True)
    verbs.choices["train"].add_argument("--only", nargs="*", default=[], metavar="WAY|RUN")
    verbs.choices["measure"].add_argument("--last", nargs=3, required=True, metavar="SET=RUN")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
