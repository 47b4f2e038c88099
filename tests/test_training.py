"""The training loop on a small corpus made here: it learns, resumes to the bit, and spans processes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from lensborn.cli import app  # noqa: E402
from lensborn.datasets.corpus import (  # noqa: E402
    LANDMARKS,
    TAGS,
    read_corpus,
    read_table,
    split_of,
    write_table,
)
from lensborn.delivery import CHROMA, Delivery, deliver  # noqa: E402
from lensborn.photo import UnreadableError  # noqa: E402
from lensborn.pretext import export  # noqa: E402
from lensborn.pretext.corpus import EpochBatches, PretextDataset, split_crops  # noqa: E402
from lensborn.pretext.export import export_encoder, parity_error  # noqa: E402
from lensborn.pretext.loop import draw_curves, learning_rate_factor  # noqa: E402
from lensborn.pretext.losses import ranking_loss  # noqa: E402
from lensborn.pretext.train import Settings, Trainer, rank_accuracy  # noqa: E402

SMALL = Settings(backbone="resnet_tiny", size=64, epochs=2, batch=8, precision="fp32", lr=3e-3)
POINTS = [20, 30, 44, 30, 32, 42, 24, 52, 42, 52]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """80 pictures from 40 sources; their noise grows with ISO, so there is something to learn."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(80):
        tags = np.exp(rng.uniform(0, 3, 4))
        pixels = 128 + 30 * rng.normal(size=(8, 8, 3)).repeat(8, 0).repeat(8, 1)
        pixels = pixels + 2 * tags[3] * rng.normal(size=pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        row = {"file": f"{number}.png", "photo_sha1": f"p{number}", "source": f"s{number // 2}", "size": "64"}
        row |= {name: repr(float(value)) for name, value in zip(TAGS, tags, strict=True)}
        row |= {name: str(value) for name, value in zip(LANDMARKS, POINTS, strict=True)}
        rows.append(row)
    write_table(folder, rows)
    return folder


def trainer(corpus, out, settings=SMALL, **options):
    splits = split_crops(read_corpus(corpus))
    return Trainer(settings, splits["train"], splits["validate"], out, workers=0, **options)


@pytest.fixture(scope="session")
def finished(corpus, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    trainer(corpus, out).fit()
    return out


def test_a_run_leaves_what_its_head_says(finished):
    for name in ("settings.json", "best.safetensors", "log.csv", "curves.png", "card.json"):
        assert (finished / name).stat().st_size > 0
    assert list((finished / "tensorboard").iterdir())
    card = json.loads((finished / "card.json").read_text())
    assert card["data"]["train"]["sources"] > 10
    assert {f"rank_{tag}" for tag in TAGS} | {"manipulation_auc"} <= set(card["best_epoch"])
    assert not list(finished.glob(".*.new"))


def test_a_killed_run_ends_with_the_same_weights(corpus, finished, tmp_path):
    """SIGKILL in the middle of an epoch, after a checkpoint that is not the epoch's last step."""
    out = tmp_path / "killed"
    code = (
        "import sys, time, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[3])\n"
        "from pathlib import Path; from test_training import trainer\n"
        "run = trainer(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_every=1,"
        " progress=lambda done, *_: time.sleep(60) if done == 3 else None)\n"
        "run.fit()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, corpus, out, Path(__file__).parent])
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    torch.set_num_threads(1)
    seen = []
    again = trainer(corpus, out, progress=lambda done, *_: seen.append(done))
    again.fit()
    assert seen[0] == 3  # from the checkpoint of step 2, not from the start
    assert again.rows[0]["epoch"] == 1
    for name in ("checkpoint.safetensors", "best.safetensors"):
        whole, resumed = load_file(finished / name), load_file(out / name)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_run_is_not_continued_under_other_settings(corpus, finished):
    other = Settings(**{**SMALL.__dict__, "lr": 1.0})
    with pytest.raises(ValueError, match="other settings"):
        trainer(corpus, finished, other).fit()


def test_a_run_is_not_continued_on_other_photographs(corpus, finished, tmp_path):
    before = {path: path.read_bytes() for path in finished.glob("*.*")}
    others = with_tags(corpus, tmp_path / "others", **{TAGS[3]: "100"})
    with pytest.raises(ValueError, match="other pictures"):
        trainer(others, finished).fit()
    trainer(corpus, finished).fit()
    assert {path: path.read_bytes() for path in finished.glob("*.*")} == before


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "settings.json"])
def test_a_damaged_run_is_told(corpus, finished, tmp_path, name):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / name).write_bytes((out / name).read_bytes()[:20])
    with pytest.raises(ValueError, match="damaged: remove"):
        trainer(corpus, out).fit()


def test_two_runs_cannot_share_a_folder(corpus, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(ValueError, match="another run"):
        trainer(corpus, out).fit()


def with_tags(corpus, folder, **values):
    """The corpus with some tags the same everywhere."""
    shutil.copytree(corpus, folder)
    write_table(folder, [row | values for row in read_table(corpus)])
    return folder


def test_a_tag_that_never_differs_is_no_task(corpus, tmp_path):
    """As of a telephone, whose aperture is fixed."""
    run = trainer(with_tags(corpus, tmp_path / "corpus", **{TAGS[0]: "1.8"}), tmp_path / "run")
    assert run.fit().exists()
    assert f"rank_{TAGS[0]}" not in run.rows[0]
    assert f"rank_{TAGS[1]}" in run.rows[0]
    assert np.isfinite([row["validation"] for row in run.rows]).all()
    same = with_tags(corpus, tmp_path / "same", **dict.fromkeys(TAGS, "2"))
    with pytest.raises(ValueError, match="do not differ in any tag"):
        trainer(same, tmp_path / "other")


def test_a_loss_that_is_no_number_ends_the_run(corpus, tmp_path):
    run = trainer(corpus, tmp_path / "run", replace(SMALL, lr=1e30), checkpoint_every=1)
    with pytest.raises(ValueError, match="smaller learning rate"):
        run.fit()


def test_a_run_killed_before_its_card_is_mended(corpus, finished, tmp_path):
    """By a kill between the last checkpoint and what is written after it; a column may be of an older version."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    whole = (out / "log.csv").read_bytes()
    for name in ("card.json", "curves.png"):
        (out / name).unlink()
    (out / "log.csv").write_bytes(whole[:50])
    run = trainer(corpus, out)
    run.fit()
    assert (out / "log.csv").read_bytes() == whole
    assert (out / "card.json").exists() and (out / "curves.png").exists()
    draw_curves([{"epoch": 1, "loss_old": 1.0}, {"epoch": 2}], out / "curves.png")


def test_a_picture_that_cannot_be_read_is_named(corpus, tmp_path):
    broken = with_tags(corpus, tmp_path / "corpus")
    for path in broken.glob("*.png"):
        path.write_bytes(b"junk")
    with pytest.raises(UnreadableError, match=r"\d+\.png: .*remove its row"):
        trainer(broken, tmp_path / "run").fit()
    words = ["pretrain", broken, "--out", tmp_path / "run2", "--backbone", "resnet_tiny", "--size", 64]
    result = CliRunner().invoke(app, [*map(str, words), "--batch", "8", "--epochs", "1", "--workers", "1"])
    assert result.exit_code == 2
    assert re.fullmatch(r"lensborn pretrain: \d+\.png: .*remove its row from the table\n", result.stderr)


def test_an_export_that_fails_leaves_the_earlier_one(finished, monkeypatch):
    export_encoder(finished)
    before = {path.name: path.read_bytes() for path in finished.glob("encoder.*")}
    monkeypatch.setattr(export, "parity_error", lambda *_: 1.0)
    with pytest.raises(RuntimeError, match="off by"):
        export_encoder(finished)
    assert {path.name: path.read_bytes() for path in finished.glob("encoder.*")} == before
    assert not list(finished.glob(".export*"))


def test_it_learns(corpus, tmp_path):
    settings = Settings(
        **{**SMALL.__dict__, "epochs": 12, "delivery": Delivery(quality=(95, 98), shrink_probability=0)}
    )
    run = trainer(corpus, tmp_path / "run", settings)
    run.fit()
    assert run.rows[-1]["loss_iso"] < 0.8 * run.rows[0]["loss_iso"]
    assert max(row["rank_iso"] for row in run.rows) > 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, "unknown backbone"),
        ({"size": 100}, "multiple of 32"),
        ({"ranking": False, "manipulation": False}, "nothing to learn"),
        ({"batch": 64}, "no batch of 64: add photographs of other sources"),
    ],
)
def test_wrong_settings_name_the_remedy(corpus, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        trainer(corpus, tmp_path / "run", Settings(**{**SMALL.__dict__, **change}))


def test_no_source_is_on_two_sides(corpus):
    splits = split_crops(read_corpus(corpus))
    assert sum(map(len, splits.values())) == 80
    for name, crops in splits.items():
        assert {split_of(crop.source) for crop in crops} == {name}


def test_examples_depend_on_seed_epoch_and_index_alone(corpus):
    crops = split_crops(read_corpus(corpus))["train"]
    one, two = (PretextDataset(crops, 64, 1, Delivery()) for _ in range(2))
    for name in ("pristine", "manipulated"):
        assert torch.equal(one[(3, 5)][name], two[(3, 5)][name])
        assert not torch.equal(one[(3, 5)][name], one[(4, 5)][name])
    assert one[0]["pristine"].shape == (3, 64, 64)


def test_batches_cap_sources_and_resume_where_they_stopped():
    sources = ["big"] * 50 + ["small"] * 10
    batches = EpochBatches(sources, batch=5, seed=0, per_source=10)
    whole = list(batches)
    assert len(whole) == len(batches) == 4
    chosen = [index for batch in whole for _, index in batch]
    assert len(set(chosen)) == 20
    assert sum(index < 50 for index in chosen) == 10
    batches.start = 2
    assert list(batches) == whole[2:]
    halves = [list(EpochBatches(sources, 4, 0, 10, rank, world=2)) for rank in (0, 1)]
    joined = list(EpochBatches(sources, 4, 0, 10))
    assert [sorted(a + b) for a, b in zip(*halves, strict=True)] == [sorted(batch) for batch in joined]


def test_schedule_rises_and_falls():
    factors = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert factors[0] < factors[5] < factors[9] < factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)


def test_rank_accuracy_is_that_of_all_pairs():
    """Against the table of all pairs, in which photographs may contradict themselves."""
    rng = np.random.default_rng(0)
    for n in (2, 3, 40, 200):
        tags, photos = rng.integers(0, 9, (n, 3)).astype(float), rng.integers(0, n // 2 + 1, n)
        scores = rng.integers(0, 12, (n, 3)).astype(np.float32)
        found = rank_accuracy(scores, tags, photos)
        for score, tag, value in zip(scores.T, tags.T, found, strict=True):
            above = (tag[:, None] > tag[None]) & (photos[:, None] != photos[None])
            difference = (score[:, None] - score[None])[above]
            wanted = np.mean((difference > 0) + 0.5 * (difference == 0)) if difference.size else np.nan
            np.testing.assert_allclose(value, wanted)


def test_rank_accuracy_takes_no_memory_for_pairs():
    rng = np.random.default_rng(0)
    tracemalloc.start()
    (found,) = rank_accuracy(
        np.zeros((30_000, 1), np.float32), rng.integers(0, 40, (30_000, 1)), np.arange(30_000)
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 0.5
    assert peak < 20e6


def test_rank_accuracy_counts_pairs_of_different_photographs_only():
    tags = np.array([[1.0], [2.0], [3.0], [3.0]])
    scores = np.array([[0.0], [1.0], [0.5], [9.0]], np.float32)
    photos = np.array([0, 1, 2, 1])
    # pairs (higher, lower): (1,0) right, (2,0) right, (2,1) wrong, (3,0) right; (3,1) is one photograph
    assert rank_accuracy(scores, tags, photos) == [0.75]


def test_the_exported_encoder_agrees_with_torch(finished):
    from lensborn.pretext.model import PretextModel

    path = export_encoder(finished)
    model = PretextModel("resnet_tiny")
    model.load_state_dict(load_file(finished / "best.safetensors"))
    assert parity_error(model.encoder.eval(), path, 64) < 0.02
    other = PretextModel("resnet_tiny").encoder.eval()
    assert parity_error(other, path, 64) > 0.1
    assert json.loads((finished / "preprocessing.json").read_text())["size"] == 64


WORKER = """
import sys, torch
from types import SimpleNamespace
from torch import distributed
from lensborn.pretext.model import PretextOutput
from lensborn.pretext.train import Settings, Trainer
distributed.init_process_group("gloo")
rank = distributed.get_rank()
data = torch.load(sys.argv[1], weights_only=True)
weight = torch.nn.Parameter(data["weight"].clone())
rows = slice(rank, None, 2)
crops = data["x"][rows]
batch = {"pristine": crops, "manipulated": crops, "tags": data["tags"][rows], "photo": data["photos"][rows]}
trainer = SimpleNamespace(settings=Settings(manipulation=False), device="cpu", world=2, crops=lambda x: x)
network = lambda x: PretextOutput(x, x @ weight, x[:, 0])
loss, _ = Trainer.losses(trainer, network, batch)
loss.backward()
distributed.all_reduce(weight.grad)
if rank == 0:
    torch.save(weight.grad / 2, sys.argv[2])
distributed.destroy_process_group()
"""


def test_two_processes_rank_the_pairs_of_both(tmp_path):
    """The gradient of two gloo processes equals that of one process on the whole batch."""
    generator = torch.Generator().manual_seed(0)
    data = {
        "x": torch.randn(12, 5, generator=generator),
        "weight": torch.randn(5, 4, generator=generator),
        "tags": torch.rand(12, 4, generator=generator).double(),
        "photos": torch.arange(12) // 2,
    }
    torch.save(data, tmp_path / "data.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, tmp_path / "worker.py", tmp_path / "data.pt", tmp_path / "gradient.pt"],
        check=True,
        env=environment,
        timeout=120,
    )
    weight = data["weight"].clone().requires_grad_()
    ranking_loss(data["x"] @ weight, data["tags"], data["photos"]).per_tag.sum().backward()
    assert torch.allclose(torch.load(tmp_path / "gradient.pt", weights_only=True), weight.grad, atol=1e-6)


def test_a_delivered_jpeg_weighs_red_more_than_blue():
    """Where chroma is coarse, what is left of a channel's fine noise is its part of the luma: 0.30, blue's 0.11."""
    left = []
    for channel in (0, 2):
        image = np.full((64, 64, 3), 128, dtype=np.uint8)
        image[..., channel] += np.random.default_rng(0).integers(0, 60, (64, 64), dtype=np.uint8)
        found = deliver(image, Delivery(quality=(98, 98), shrink_probability=0, brightness=0), _Coarse())
        left.append(found[..., channel].astype(float).std())
    assert left[0] > 1.2 * left[1]


class _Coarse(np.random.Generator):
    """A generator that draws the coarse chroma."""

    def __init__(self):
        super().__init__(np.random.PCG64(0))

    def choice(self, *_args, **_options):
        return CHROMA[1]
