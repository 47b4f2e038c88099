"""The loop that every training shares: AdamW, warm-up and cosine, exact resumption, a run card.

A run is a folder:
    settings.json            what was asked for
    checkpoint.safetensors   weights, optimiser and position: a killed run goes on from here
    best.safetensors         weights of the best epoch on sources kept apart
    log.csv, tensorboard/    one row an epoch
    curves.png, card.json    for people: curves, data summary, versions
    encoder.xml, encoder.bin, preprocessing.json     the exported encoder (see export.py)
"""

import csv
import io
import json
import math
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler

from lensborn import defaults
from lensborn.disk import whole_file

CHECKPOINT, BEST, LOG, CARD = "checkpoint.safetensors", "best.safetensors", "log.csv", "card.json"
_LOCK = ".lock"

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class LoopSettings:
    """What the loop itself needs to know of a run."""

    init: str | None = None  # a published checkpoint to start from
    epochs: int = 30
    batch: int = 64  # examples of each of the two classes a step, over all processes
    lr: float = 3e-4
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    precision: str = "auto"  # "bf16", "fp32", or "auto": bf16 where the processor computes in it
    channels_last: bool = True
    seed: int = defaults.SEED


def validate_loop(settings: LoopSettings) -> None:
    """Raises ValueError, naming the remedy, for settings that can't be run."""
    if settings.precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"unknown precision {settings.precision!r}: use auto, bf16 or fp32")
    if settings.epochs < 1 or settings.batch < 2:
        raise ValueError("a run needs at least 1 epoch and batches of at least 2 photographs")


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) of one epoch. `epoch`: which; `start`: the first batch still to come."""

    epoch = 0
    start = 0

    @abstractmethod
    def __len__(self) -> int:
        """Batches in a whole epoch."""


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is native on the device (on a CPU: AVX-512 BF16 or AMX), so that it pays."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "avx512_bf16" in flags.read_text()


class Loop(ABC):
    """One run; `fit` is the whole of it. A kind of training adds its losses and its validation.

    `loader` draws its batches from `batches`. `summary`: of the data, for the card; `data`: its digest, since a run
    goes on with the same alone. `views`: pictures that a step sees of each example. `progress` is called after
    every step with (steps done, steps in all, the epoch's latest numbers).
    """

    summary: Mapping[str, Any]
    data = ""
    views = 2

    def __init__(
        self,
        settings: LoopSettings,
        model: nn.Module,
        batches: EpochSampler,
        loader: DataLoader[dict[str, Tensor]],
        out: Path,
        *,
        checkpoint_every: int = 50,
        progress: Progress = lambda *_: None,
    ) -> None:
        self.settings, self.out, self.progress = settings, out, progress
        self.checkpoint_every = checkpoint_every
        self.rank, self.world = place()
        self.device = repeatable_device()
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(_parameter_groups(self.model, settings), lr=settings.lr)
        self.batches, self.loader = batches, loader
        self.epoch, self.step, self.best = 0, 0, -math.inf
        self.rows: list[dict[str, float]] = []

    @abstractmethod
    def losses(self, network: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and what the log tells of it by name."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Numbers on what was kept apart; the best epoch has the largest `validation`."""

    def fit(self) -> Path:
        """Trains to the end, from the checkpoint in `out` if there is one; returns the best weights' path.

        Raises ValueError where another run writes there, the checkpoint is of other settings or data, or damaged,
        and where the loss is no longer finite; OSError where the disk refuses.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.rank:
            return self._fit()
        try:
            with FileLock(self.out / _LOCK, timeout=0):
                return self._fit()
        except Timeout as error:
            raise ValueError(
                f"another run writes to {self.out}: wait for it, or name another folder"
            ) from error

    def _fit(self) -> Path:
        self._begin()
        if self.epoch == self.settings.epochs and (self.out / CARD).exists():
            return self.out / BEST  # through, long ago perhaps: its card tells of then
        network: nn.Module = self.model
        if self.world > 1:
            network = DistributedDataParallel(self.model)
        while self.epoch < self.settings.epochs:
            row = self._train_epoch(network)
            row |= self.validate()
            self._finish_epoch(row)
        if self.rank == 0:
            self._write_card()
        return self.out / BEST

    def _begin(self) -> None:
        wanted = json.loads(json.dumps(asdict(self.settings)))
        path = self.out / "settings.json"
        if (self.out / CHECKPOINT).exists():
            try:
                if json.loads(path.read_text()) != wanted:
                    raise ValueError(
                        f"{self.out} holds a run with other settings: name another folder, or repeat its settings"
                    )
                self._restore()
            except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"the run in {self.out} is damaged: remove that folder, and train anew"
                ) from error
        elif self.rank == 0:
            _write_text(path, json.dumps(wanted, indent=2) + "\n")

    def _train_epoch(self, network: nn.Module) -> dict[str, float]:
        self.batches.epoch, self.batches.start = self.epoch, self.step
        total = self.settings.epochs * len(self.batches)
        network.train()
        sums: dict[str, float] = {}
        began = time.perf_counter()
        for count, batch in enumerate(self.loader, start=1):
            numbers = self.train_step(network, batch)
            self.step += 1
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            means = {name: value / count for name, value in sums.items()}
            seconds = time.perf_counter() - began
            means["images_per_s"] = self.views * self.settings.batch * count / seconds
            self.progress(self.epoch * len(self.batches) + self.step, total, means)
            if self.step % self.checkpoint_every == 0 and self.step < len(self.batches):
                self._save()
        return {"epoch": self.epoch + 1, "lr": self.optimiser.param_groups[0]["lr"], **means}

    def train_step(self, network: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One update of the weights; returns the losses by name."""
        self._set_learning_rate()
        with self.autocast():
            loss, numbers = self.losses(network, batch)
        if not torch.isfinite(loss):
            raise ValueError(
                "the loss is no longer finite: begin anew, in another folder, with a smaller learning rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return numbers

    def _finish_epoch(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        better = row["validation"] > self.best
        self.best = max(self.best, row["validation"])
        self.epoch, self.step = self.epoch + 1, 0
        if self.rank:
            return
        if better:
            save_tensors(self.out / BEST, self.model.state_dict(), {"epoch": str(self.epoch)})
        self._save()
        write_rows(self.out / LOG, self.rows)
        _write_events(self.out / "tensorboard", row)

    def _save(self) -> None:
        if self.rank:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
        position = {
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "rows": self.rows,
            "data": self.data,
        }
        save_tensors(self.out / CHECKPOINT, tensors, {"position": json.dumps(position)})

    def _restore(self) -> None:
        with safe_open(self.out / CHECKPOINT, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            position = json.loads(file.metadata()["position"])
        if position.get("data", self.data) != self.data:
            raise ValueError(f"{self.out} holds a run on other pictures: name another folder")
        self.model.load_state_dict(
            {
                name.removeprefix("model."): value
                for name, value in tensors.items()
                if name.startswith("model.")
            }
        )
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, number, key = name.split(".", 2)
                state.setdefault(int(number), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.epoch, self.step, self.best = position["epoch"], position["step"], position["best"]
        self.rows = position["rows"]

    def _set_learning_rate(self) -> None:
        now = self.epoch * len(self.batches) + self.step
        factor = learning_rate_factor(
            now, self.settings.epochs * len(self.batches), self.settings.warmup_epochs * len(self.batches)
        )
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * factor

    def crops(self, batch: Tensor) -> Tensor:
        """Crops (N, 3, S, S) uint8 as the network takes them: on its device, in its memory layout."""
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        return batch.to(self.device, torch.float32).contiguous(memory_format=layout)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of forward passes."""
        wanted = self.settings.precision
        if wanted == "bf16" or (wanted == "auto" and computes_in_bf16(self.device)):
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _write_card(self) -> None:
        best = max(self.rows, key=lambda row: row["validation"])
        card = {
            "settings": asdict(self.settings),
            "data": self.summary,
            "best_epoch": best,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "processes": self.world,
        }
        write_rows(self.out / LOG, self.rows)  # a kill may have come between the last checkpoint and its row
        draw_curves(self.rows, self.out / "curves.png")
        _write_text(self.out / CARD, json.dumps(card, indent=2) + "\n")  # last: a run that has one is through


def gather(local: Tensor) -> Tensor:
    """Rows of all processes, in order of rank; the own ones keep their gradient. One process: unchanged."""
    rank, world = place()
    if world == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world)]
    distributed.all_gather(parts, local.detach().contiguous())
    parts[rank] = local
    return torch.cat(parts)


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear rise over `warmup` steps, at most half of all, then half a cosine down to 0 at `steps`; in 0..1."""
    warmup = min(warmup, steps / 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Losses and validation numbers by epoch, as a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, needed once a run

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for name in (name for name in rows[0] if all(name in row for row in rows)):
        if name.startswith("loss_"):
            left.plot(epochs, [row[name] for row in rows], label=name.removeprefix("loss_"))
        elif name.startswith("rank_") or name.endswith("auc"):
            right.plot(epochs, [row[name] for row in rows], label=name.removeprefix("rank_"))
    left.set(title="training: loss", xlabel="epoch")
    right.set(title="sources kept apart: rank accuracy, AUC", xlabel="epoch", ylim=(0.45, 1))
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _parameter_groups(model: nn.Module, settings: LoopSettings) -> list[dict[str, Any]]:
    """Decay for matrices and kernels; none for biases and normalisations, which have one dimension."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def area_under_curve(negative: NDArray[np.float32], positive: NDArray[np.float32]) -> float:
    """Share of pairs in which the positive score (M,) is the higher one of (N,); a tie counts half."""
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - slow to import

    labels = np.r_[np.zeros(len(negative)), np.ones(len(positive))]
    return float(roc_auc_score(labels, np.r_[negative, positive]))


def place() -> tuple[int, int]:
    """Rank and number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def repeatable_device() -> torch.device:
    """The GPU that torchrun gave to this process, else the first; the CPU where there is none.

    A GPU is told to compute the same each time, as a CPU does: a run that was killed must end as it would have.
    """
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    # safetensors stores rows contiguously; channels-last is put back when the weights are loaded.
    stored = save({name: value.contiguous().cpu() for name, value in tensors.items()}, metadata)
    with whole_file(path) as file:
        file.write(stored)


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


def write_rows(path: Path, rows: Sequence[Mapping[str, float | str]]) -> None:
    """Write rows of the same columns as CSV, whole or not at all."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _write_text(path, table.getvalue())


def _write_events(folder: Path, row: Mapping[str, float]) -> None:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow to import

    with SummaryWriter(str(folder)) as writer:
        for name, value in _numbers(row):
            writer.add_scalar(name, value, int(row["epoch"]))


def _numbers(row: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return ((name, value) for name, value in row.items() if name != "epoch")
