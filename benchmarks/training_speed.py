"""Speed of training, beside the same training in float32 and NCHW layout, and beside its limit; prints Markdown.

    python benchmarks/training_speed.py CORPUS [--backbone resnet50] [--size 224] [--batch 16] [--workers 1]

Training as `lensborn pretrain` does it, its loader in processes of its own; the reference way, in float32 and the
layout that torch comes with; and the limit, forward and backward on a batch that is ready, without the loader and
without an update of the weights.
They take turns in one process, so that a busy machine slows all; the ratios are what counts.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from common import machine, print_table, row, timed
from torch import Tensor

from lensborn.datasets.corpus import read_corpus
from lensborn.pretext.corpus import split_crops
from lensborn.pretext.train import Settings, Trainer

REFERENCE = {"precision": "fp32", "channels_last": False}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16, help="photographs, each seen twice")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="a round, of each way")
    parser.add_argument("--workers", type=int, default=1, help="loader processes, as of lensborn pretrain")
    arguments = parser.parse_args()
    images = 2 * arguments.batch
    print(f"{machine('torch')}, {torch.get_num_threads()} threads")
    print(f"{arguments.backbone}, {arguments.size} px, {images} images a step, random weights\n")
    splits = split_crops(read_corpus(arguments.corpus))
    ours, reference = (
        Trainer(
            Settings(backbone=arguments.backbone, size=arguments.size, batch=arguments.batch, **layout),
            splits["train"],
            splits["validate"],
            Path(tempfile.gettempdir()) / "unused",
            workers=arguments.workers,
        )
        for layout in ({}, REFERENCE)
    )
    ready = next(iter(ours.loader))
    ways: dict[str, Callable[[int], float]] = {
        "lensborn": partial(training, ours),
        "reference: float32, NCHW": partial(training, reference),
        "limit: forward and backward alone": partial(passes, ours, ready),
    }
    rates: dict[str, list[float]] = defaultdict(list)
    for round_ in range(arguments.rounds + 1):
        for name, seconds_of in ways.items():
            seconds = seconds_of(arguments.steps)
            if round_:  # the first is for warming up
                rates[name].append(images * arguments.steps / seconds)
    rows = [row(f"{name}, images/s", values, ".1f") for name, values in rates.items()]
    mine, theirs, limit = rates.values()
    rows.append(row("lensborn over reference", ratios(mine, theirs), ".2f", " times"))
    rows.append(row("lensborn over limit", ratios(mine, limit, 100), ".0f", " %"))
    print_table(("measure", "value", "lowest to highest"), rows)


def training(trainer: Trainer, steps: int) -> float:
    """Seconds of so many steps within an epoch; the first, for which the loader must start, does not count."""
    if steps >= len(trainer.batches):
        raise SystemExit(
            f"an epoch has {len(trainer.batches)} steps: give fewer --steps, or a smaller --batch"
        )
    network = trainer.model.train()
    batches = islice(trainer.loader, steps + 1)
    finished([trainer.train_step(network, next(batches))])
    return timed(lambda: finished(trainer.train_step(network, batch) for batch in batches))


def passes(trainer: Trainer, batch: dict[str, Tensor], steps: int) -> float:
    """Seconds of so many passes, forward and backward."""
    network = trainer.model.train()

    def once() -> None:
        network.zero_grad(set_to_none=True)
        with trainer.autocast():
            loss, _ = trainer.losses(network, batch)
        loss.backward()

    return timed(lambda: finished(once() for _ in range(steps)))


def finished(work: Iterable[object]) -> None:
    """Does all of it, and waits for a GPU, which computes on after a call has come back."""
    for _ in work:
        pass
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(above: list[float], below: list[float], factor: float = 1) -> list[float]:
    return [factor * a / b for a, b in zip(above, below, strict=True)]


if __name__ == "__main__":
    main()
