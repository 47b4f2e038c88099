"""Speed of a training step, against the same step in float32 and NCHW layout, side by side.

    python benchmarks/training_speed.py CORPUS [--backbone resnet50] [--size 224] [--batch 16] [--rounds 5]

The two take turns on the same batches in one process, so that a busy machine slows both; the ratio of the
medians is what counts.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lensborn.datasets.corpus import read_corpus
from lensborn.pretext.corpus import split_crops
from lensborn.pretext.train import Settings, Trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    splits = split_crops(read_corpus(arguments.corpus))
    trainers = {}
    for name, layout in {"lensborn": {}, "reference": {"precision": "fp32", "channels_last": False}}.items():
        settings = Settings(backbone=arguments.backbone, size=arguments.size, batch=arguments.batch, **layout)
        out = Path(tempfile.gettempdir()) / "unused"
        trainers[name] = Trainer(settings, splits["train"], splits["validate"], out, workers=0)
    batch = next(iter(trainers["lensborn"].loader))
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for round_ in range(arguments.rounds + 1):
        for name, trainer in trainers.items():
            began = time.perf_counter()
            trainer.train_step(trainer.model.train(), batch)
            if round_:  # the first is for warming up
                seconds[name].append(time.perf_counter() - began)
    images = 2 * arguments.batch
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"{arguments.backbone}, {arguments.size} px, {images} images a step, {torch.get_num_threads()} threads"
    )
    for name, median in medians.items():
        print(f"{name:10} {images / median:6.1f} images/s")
    print(f"ratio      {medians['reference'] / medians['lensborn']:6.2f}")


if __name__ == "__main__":
    main()
