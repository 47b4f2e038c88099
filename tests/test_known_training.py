"""The training of the known channel: what it draws, what it shows, and that a run can be cut off."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from lensborn.datasets.corpus import Crop, split_of  # noqa: E402
from lensborn.datasets.pictures import Picture  # noqa: E402
from lensborn.features import Encoder  # noqa: E402
from lensborn.pretext.known import (  # noqa: E402
    PHOTOS,
    PLACES,
    BalancedBatches,
    Example,
    KnownModel,
    KnownSettings,
    KnownTrainer,
    PatchDataset,
    export_known,
    photo_examples,
    picture_examples,
    picture_split,
    weights,
)

SMALL = KnownSettings(
    backbone="resnet_tiny", patch=32, epochs=2, steps=4, batch=4, precision="fp32", warmup_epochs=0.5
)


def crop(path: Path, source: str) -> Crop:
    return Crop(path, path.name, source, np.full(4, np.nan), None, 160, {})


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """Forty "photographs" of noise and forty "generated" ones of coarse noise, in two sets each."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    examples = []
    for number in range(80):
        generated = number % 2 == 1
        cell = 8 if generated else 2
        noise = rng.integers(0, 256, (160 // cell, 160 // cell, 3), dtype=np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(noise).resize((160, 160), Image.Resampling.BICUBIC).save(path)
        name = f"{'fake' if generated else 'real'}{number % 4 // 2}"
        examples.append(Example(crop(path, f"s{number // 8}"), name, generated))
    return examples


def trainer(
    faces: Sequence[Example], out: Path, settings: KnownSettings = SMALL, **options: object
) -> KnownTrainer:
    return KnownTrainer(settings, faces[:60], faces[60:], out, workers=0, **options)


def test_sets_and_sources_are_drawn_as_they_should_be() -> None:
    examples = [
        Example(crop(Path(f"{name}{source}{n}"), source), name, generated)
        for name, source, count, generated in [
            ("a", "album", 90, False), ("a", "other", 10, False), ("b", "", 5, False), ("x", "", 7, True),
        ]
        for n in range(count)
    ]  # fmt: skip
    real, fake = weights(examples, False, 20), weights(examples, True, 20)
    assert real.sum() == pytest.approx(1) and fake.sum() == pytest.approx(1)
    total: Counter[str] = Counter()
    for example, value in zip(examples, real, strict=True):
        total[example.set] += value
        total[f"{example.set}/{example.crop.source}"] += value
    assert total["a"] == pytest.approx(0.5) and total["b"] == pytest.approx(0.5) and total["x"] == 0
    assert total["a/album"] == pytest.approx(0.5 * 20 / 30)  # as of twenty crops, not of ninety
    np.testing.assert_allclose(fake[-7:], 1 / 7)


def test_batches_are_balanced_and_the_same_for_every_number_of_processes(faces: list[Example]) -> None:
    whole = list(BalancedBatches(faces, 3, 4, 0, 32, 0, 1))
    for batch in whole:
        assert [faces[index].generated for _, index in batch] == [False] * 4 + [True] * 4
    halves = [list(BalancedBatches(faces, 3, 4, 0, 32, rank, 2)) for rank in (0, 1)]
    for batch, one, other in zip(whole, *halves, strict=True):
        assert sorted(one + other) == sorted(batch)
    later = BalancedBatches(faces, 3, 4, 0, 32, 0, 1)
    later.start = 2
    assert list(later) == whole[2:]
    later.epoch, later.start = 1, 0
    assert next(iter(later)) != whole[0]


def test_an_item_is_the_same_each_time_and_another_for_each_draw(faces: list[Example]) -> None:
    dataset = PatchDataset(faces, 64, 0, SMALL.delivery)
    item = dataset[3, 5]
    assert item["patches"].shape == (PLACES, 3, 64, 64)
    assert torch.equal(item["patches"], PatchDataset(faces, 64, 0, SMALL.delivery)[3, 5]["patches"])
    assert not torch.equal(item["patches"], dataset[4, 5]["patches"])
    assert bool(item["generated"]) == faces[5].generated
    plain = PatchDataset(faces, 64, 0, None)
    assert torch.equal(plain[3, 5]["patches"], plain[4, 5]["patches"])


def test_a_run_that_was_cut_off_ends_with_the_same_weights(faces: list[Example], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    trainer(faces, tmp_path / "whole").fit()

    class CutError(Exception):
        pass

    def cut(done: int, *_: object) -> None:
        if done == 6:
            raise CutError

    with pytest.raises(CutError):
        trainer(faces, tmp_path / "cut", checkpoint_every=1, progress=cut).fit()
    trainer(faces, tmp_path / "cut").fit()
    whole, resumed = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("backbone", ["resnet_tiny", "efficientnet_lite0"])
def test_begun_from_another_run_only_the_last_stage_learns(
    faces: list[Example], tmp_path: Path, backbone: str
) -> None:
    torch.manual_seed(7)
    encoder = KnownModel(backbone).encoder
    save_file({f"encoder.{name}": value for name, value in encoder.state_dict().items()}, tmp_path / "start")
    settings = replace(SMALL, backbone=backbone, epochs=1, steps=2, start=str(tmp_path / "start"))
    run = trainer(faces, tmp_path / "run", settings)
    run.fit()
    found = run.model.cpu().encoder.state_dict()
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, found[name])}
    ids = {id(module) for part in encoder.backbone.last_stage() for module in part.modules()}
    last = tuple(
        f"backbone.{name}." for name, module in encoder.backbone.named_modules() if id(module) in ids
    )
    assert moved and {name for name in moved if not name.startswith((*last, "projection"))} == set()
    assert any(name.startswith(last) and "conv" in name for name in moved)
    assert any("running_mean" in name for name in moved)


def test_a_start_that_holds_no_encoder_is_refused(faces: list[Example], tmp_path: Path) -> None:
    save_file({"encoder.mean": torch.zeros(1)}, tmp_path / "start")
    with pytest.raises(ValueError, match="holds no encoder"):
        trainer(faces, tmp_path / "run", replace(SMALL, start=str(tmp_path / "start")))


def test_it_learns_and_its_export_agrees_with_torch(faces: list[Example], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = trainer(faces, tmp_path, replace(SMALL, epochs=4, steps=10, lr=3e-3))
    run.fit()
    assert run.best > 0.9
    assert run.summary["train"]["real0"] == {"faces": 15, "sources": 8}
    xml = export_known([tmp_path])
    model = KnownModel("resnet_tiny")
    model.load_state_dict(load_file(tmp_path / "best.safetensors"))
    patches = PatchDataset(faces, 32, 0, None)[7]["patches"]
    with torch.no_grad():
        encoder = model.eval().encoder
        maps = encoder.last(encoder.trunk(patches.float()))
        features = model.encoder(patches.float())
        torch.testing.assert_close(features, model.encoder.projection(maps.mean((2, 3))))
    wanted = np.concatenate([maps.mean((2, 3)), maps.numpy().std(axis=(2, 3))], axis=1)
    found = Encoder(xml).encode(patches.numpy().transpose(0, 2, 3, 1).copy())
    assert found.shape == (1, 2 * model.encoder.backbone.width)
    np.testing.assert_allclose(found, wanted, atol=0.02 * wanted.std())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "nothing"}, "unknown backbone"),
        ({"patch": 48}, "multiple of 32"),
        ({"patch": 256}, "at most"),
        ({"epochs": 0}, "at least 1 epoch"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(
    faces: list[Example], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(faces, tmp_path, replace(SMALL, **changes))


def test_one_class_alone_is_refused(faces: list[Example], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs photographs and generated faces"):
        KnownTrainer(SMALL, faces[::2], faces[1::2], tmp_path)


def test_photographs_are_split_by_source() -> None:
    crops = [crop(Path(f"{n}.jpg"), f"s{n}") for n in range(200)]
    splits = photo_examples(crops)
    for split, examples in splits.items():
        assert examples
        assert {split_of(example.crop.source) for example in examples} == {split}
        assert {example.set for example in examples} == {PHOTOS}


def test_pictures_left_to_be_judged_are_photographs() -> None:
    shares = {
        label: Counter(picture_split(Picture(Path("a"), f"{n}", "s", label)) for n in range(2000))
        for label in ("real", "fake")
    }
    assert shares["real"]["judge"] / 2000 == pytest.approx(0.4, abs=0.05)
    assert shares["fake"]["train"] / 2000 == pytest.approx(0.85, abs=0.05)
    assert shares["fake"]["judge"] == 0


def test_the_largest_face_of_a_picture_is_the_example(examples: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    pictures = [
        Picture(path, path.name, "set", "fake", hashlib.sha256(path.name.encode()).hexdigest())
        for path in (examples / "group-of-eight.jpg", tmp_path / "text.jpg", examples / "generated-man.jpg")
    ]
    found = picture_examples(pictures)
    assert [example.crop.file.name for example in found] == ["group-of-eight.jpg", "generated-man.jpg"]
    assert all(example.generated and example.crop.box is not None for example in found)


def test_runs_that_began_alike_make_one_channel(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    one, other, stranger = (KnownModel("resnet_tiny").eval() for _ in range(3))
    other.encoder.backbone.load_state_dict(
        {
            name: value if name.startswith("layer4") else one.encoder.backbone.state_dict()[name]
            for name, value in other.encoder.backbone.state_dict().items()
        }
    )
    runs = [tmp_path / name for name in ("one", "other", "stranger")]
    for run, model in zip(runs, (one, other, stranger), strict=True):
        run.mkdir()
        save_file(model.state_dict(), run / "best.safetensors")
        (run / "settings.json").write_text('{"backbone": "resnet_tiny", "patch": 32}')
    patches = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    both, first, second = (
        Encoder(export_known(some)).encode(patches) for some in (runs[:2], runs[:1], runs[1:2])
    )
    np.testing.assert_allclose(both, np.concatenate([first, second], axis=1), atol=1e-5 * both.std())
    assert (tmp_path / "one+other" / "known.bin").stat().st_size < 2 * (runs[0] / "known.bin").stat().st_size
    with pytest.raises(ValueError, match="differ before their last stages"):
        export_known([runs[0], runs[2]])
