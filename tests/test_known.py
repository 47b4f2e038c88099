"""The known channel: what it sees, what it says, and that the first channel never knows of it."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import TINY, TINY_DIM, coarse
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from lensborn import defaults
from lensborn.bundle import Bundle, BundleError, read_bundle
from lensborn.calibration import Conformal
from lensborn.cli import app
from lensborn.detector import Detector, judge
from lensborn.faces import crop_face
from lensborn.features import bundle_encoder
from lensborn.known import KnownChannel, KnownGenerator, KnownLook, Silence, detail
from lensborn.known_head import KnownHead
from lensborn.memory import LEARN
from lensborn.photo import read_photo

LEVELS = st.floats(1e-4, 1)


@pytest.mark.parametrize("size", [192, 64])
def test_the_patch_is_the_middle_of_the_crop_whatever_size_the_first_channel_sees(
    tiny_channel: KnownChannel, examples: Path, size: int
) -> None:
    pixels = read_photo(examples / "generated-man.jpg").pixels
    box, look = (100.0, 120.0, 300.0, 280.0), tiny_channel.look
    crop = crop_face(pixels, box, size, 1.3)
    start, end = (look.side - look.patch) // 2, (look.side + look.patch) // 2
    np.testing.assert_array_equal(
        tiny_channel.patches(pixels, [box], 1.3, crop[None])[0],
        crop_face(pixels, box, look.side, 1.3)[start:end, start:end],
    )


@pytest.mark.parametrize(
    "values", [(96, 192, 80), (192, 16, 80), (4096, 96, 80), (192, 96, 0), (192, 96, 80, -1.0)]
)
def test_a_look_out_of_range_is_refused(values: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        KnownLook(*values)


def test_what_is_said_of_patches(tiny_channel: KnownChannel, example_crops: npt.NDArray[np.uint8]) -> None:
    first = np.zeros((3, TINY_DIM), np.float32)  # nothing was taught: it does not matter
    said = tiny_channel.judge(tiny_channel.look_at(example_crops[:3], [200.0, 99.9, 100.0]), first)
    assert said[1] is Silence.TOO_SMALL
    scores = tiny_channel.head.score(tiny_channel.encoder.encode(example_crops[:3]))
    for one, score in ((said[0], scores[0]), (said[2], scores[2])):
        assert isinstance(one, KnownGenerator)
        assert one.score == score
        assert one.p_value == tiny_channel.head.p_values([score])[0]
        assert one.probability == pytest.approx(1 / (1 + np.exp(-score)))


def test_each_face_is_judged_by_its_own_features_of_both_channels(
    tiny_channel: KnownChannel, tiny_bundle: Bundle, example_crops: npt.NDArray[np.uint8]
) -> None:
    """Of a taught channel, which goes by those of the first channel, too; the face between is not judged."""
    rng = np.random.default_rng(0)
    shown = rng.normal(3, 1, (40, 1, 2 * TINY_DIM))
    memory = tiny_channel.head.memory.add("new", True, shown, np.zeros((40, 1)), LEARN, taught=True)
    part = replace(tiny_channel.part, head=KnownHead.learn(memory, TINY_DIM))
    channel, crops = KnownChannel(tiny_channel.xml, part), example_crops[:3]
    first = Detector.load(tiny_bundle.path).encoder.encode(crops)
    said = channel.judge(channel.look_at(crops, [200.0, 99.9, 200.0]), first)
    wanted = channel.head.score(np.concatenate([channel.encoder.encode(crops), first], axis=1))
    scores = [one.score if isinstance(one, KnownGenerator) else None for one in said]
    assert scores == [wanted[0], None, wanted[2]]
    mixed = np.concatenate([channel.encoder.encode(crops), first[[0, 2, 1]]], axis=1)
    assert channel.head.score(mixed)[2] != wanted[2]


def test_a_channel_that_remembers_other_features_is_refused(
    known_bundle: Bundle, tiny_channel: KnownChannel
) -> None:
    memory = tiny_channel.head.memory
    few = replace(memory, features=memory.features[:, :-1], grid=memory.grid[:, :-1])
    part = replace(tiny_channel.part, head=KnownHead.learn(few, TINY_DIM))
    bundle = read_bundle(known_bundle.path)
    with pytest.raises(BundleError, match="not those of both networks"):
        Detector(
            bundle_encoder(bundle),
            density=bundle.density,
            conformal=bundle.conformal,
            manifest=bundle.manifest,
            card="",
            info=Detector.load(known_bundle.path).info,
            known=KnownChannel(tiny_channel.xml, part),
        )


def test_it_tells_what_it_was_taught(
    tiny_channel: KnownChannel, example_crops: npt.NDArray[np.uint8]
) -> None:
    others = np.stack([coarse(crop) for crop in example_crops])
    scores = [
        tiny_channel.head.score(tiny_channel.encoder.encode(crops)).mean()
        for crops in (example_crops, others)
    ]
    assert scores[0] < 0 < scores[1]


def test_a_face_without_detail_is_unsure(
    tiny_channel: KnownChannel, known_bundle: Bundle, examples: Path
) -> None:
    part = tiny_channel.part
    strict = KnownChannel(tiny_channel.xml, replace(part, manifest={**part.manifest, "least_detail": 100.0}))
    (face,) = Detector.load(known_bundle.path).with_known(strict).detect(examples / "generated-man.jpg").faces
    assert (face.verdict, face.known_generator) == ("unsure", None)
    assert "too little fine detail" in face.reasons[0]


def test_a_channel_calibrated_beside_another_first_channel_is_refused(
    known_bundle: Bundle, tiny_bundle: Bundle
) -> None:
    channel = Detector.load(known_bundle.path).known
    other = Detector.load(tiny_bundle.path)
    assert channel is not None
    assert other.with_known(channel).known is channel
    other.density = replace(other.density, means=other.density.means + 1)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="beside another first channel"):
        other.with_known(channel)


def test_detail_is_the_distance_from_the_mean_around() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(grey.astype(float), 1, "reflect"), (3, 3)).mean(
        (2, 3)
    )
    assert detail(np.repeat(grey[..., None], 3, axis=2)) == pytest.approx(
        np.abs(grey - around).mean(), rel=1e-5
    )
    assert detail(np.full((32, 32, 3), 90, np.uint8)) == 0


@pytest.mark.parametrize("score", [-1e4, -3.0, 0.0, 3.0, 1e4])
def test_probability_never_overflows(score: float) -> None:
    probability = KnownGenerator(score, 0.5).probability
    assert 0 <= probability <= 1
    assert KnownGenerator(-score, 0.5).probability == pytest.approx(1 - probability)


def test_the_detector_says_both_numbers(
    tiny_bundle: Bundle, known_bundle: Bundle, tiny_channel: KnownChannel, examples: Path
) -> None:
    picture = examples / "generated-man.jpg"
    (with_channel,) = Detector.load(known_bundle.path).detect(picture).faces
    (without,) = Detector.load(tiny_bundle.path).detect(picture).faces
    assert without.known_generator is None
    assert (with_channel.score, with_channel.p_value) == (without.score, without.p_value)
    crop = crop_face(read_photo(picture).pixels, with_channel.box, tiny_channel.look.side, TINY.crop_scale)
    (expected,) = tiny_channel.head.score(tiny_channel.encoder.encode(tiny_channel.look.middle(crop[None])))
    assert with_channel.known_generator is not None
    assert with_channel.known_generator.score == pytest.approx(expected, abs=0.2)  # the box is rounded
    line = Detector.load(known_bundle.path).detect(picture).to_dict()
    assert set(line["faces"][0]["known_generator"]) == {"score", "p_value"}


def test_faces_too_small_for_the_channel_are_left_to_the_first(known_bundle: Bundle, examples: Path) -> None:
    detector = Detector.load(known_bundle.path)
    (detection,) = detector.detect_many([examples / "group-of-eight.jpg"])
    said = [face.known_generator is not None for face in detection.faces]
    assert True in said and False in said


def test_reasons_name_the_channel_that_spoke() -> None:
    """By its own p-value; and both where neither alone is at most alpha."""
    known = KnownGenerator(3.0, 0.01)
    assert judge(0.4, 0.02, 200, 0.05, known) == (
        "ai_generated",
        (
            "like generated faces: 40 % of calibration photographs look at least this unusual, 1 % at least this "
            "much like generated faces",
            "no more than 2 % in both together",
        ),
    )
    assert judge(0.001, 0.002, 200, 0.05, known)[1][0].startswith("unusual and like generated faces: 0.1 %")
    assert judge(0.03, 0.05, 200, 0.05, KnownGenerator(0.0, 0.3))[1][0].startswith("unusual: 3 %")
    assert judge(0.2, 0.05, 200, 0.05, KnownGenerator(0.0, 0.1))[1][0].startswith(
        "somewhat unusual and somewhat like generated faces: 20 %"
    )
    assert judge(0.04, 0.06, 200, 0.05, KnownGenerator(0.0, 0.3)) == (
        "photographic",
        (
            "no more unusual than photographs: 4 % of calibration photographs look at least this unusual, "
            "30 % at least this much like generated faces, at most 6 % in both together",
        ),
    )
    assert judge(0.001, 0.001, 79, 0.05, known)[0] == "unsure"
    assert judge(0.04, 0.04, 200, 0.05) == (  # a model without the channel
        "ai_generated",
        ("no more than 4 % of calibration photographs look this unusual",),
    )
    assert judge(0.01, 0.05, 100, 0.05, Silence.TOO_SMALL)[0] == "ai_generated"
    assert judge(0.03, 0.15, 100, 0.05, Silence.TOO_SMALL)[1][0].endswith(
        "too small for the known channel, so that 1 % counts"
    )


@given(LEVELS, LEVELS, LEVELS, st.floats(1e-4, 0.99))
def test_the_combined_p_decides(first: float, second: float, combined: float, alpha: float) -> None:
    known = KnownGenerator(0.0, second)
    flagged = judge(first, combined, defaults.MIN_CROP_PX, alpha, known)[0] == "ai_generated"
    assert flagged == (combined <= alpha)


def test_the_combined_p_is_of_both_scores_or_of_the_first_alone(tiny_channel: KnownChannel) -> None:
    both = tiny_channel.combined_p(1.5, 0.3, KnownGenerator(2.0, 0.1))
    assert both == tiny_channel.head.fused_p([2.0], [1.5])[0]
    assert tiny_channel.combined_p(1.5, 0.01, Silence.TOO_SMALL) == pytest.approx(0.05)
    assert tiny_channel.combined_p(1.5, 0.3, Silence.TOO_SMALL) == 1.0


def test_a_silent_channel_leaves_the_first_a_part_of_alpha(tiny_channel: KnownChannel) -> None:
    """Else the rate would exceed alpha where the faces that it is silent of are the unusual ones."""
    rng = np.random.default_rng(0)
    silent = rng.uniform(size=40_000) < 0.1
    scores = rng.normal(size=40_000) + 1.0 * silent
    first = Conformal.fit(scores[:20_000]).p_values(scores[20_000:])
    together = rng.uniform(size=20_000)
    alone = [tiny_channel.combined_p(math.nan, p, Silence.TOO_SMALL) for p in first.tolist()]
    combined = np.where(silent[20_000:], alone, together)
    assert (combined <= 0.05).mean() <= 0.053
    assert (np.where(silent[20_000:], first, together) <= 0.05).mean() > 0.055


def test_the_first_channel_is_the_same_to_the_bit(tiny_bundle: Bundle, known_bundle: Bundle) -> None:
    """It never saw a generated picture, and the files say so: they are those of the bundle without the channel."""
    first = tiny_bundle.manifest["files"]
    both = known_bundle.manifest["files"]
    assert set(both) - set(first) == {"known.xml", "known.bin", "known.safetensors", "known-seen.txt"}
    assert {name: both[name] for name in first} == first
    for name in first:
        assert (known_bundle.path / name).read_bytes() == (tiny_bundle.path / name).read_bytes()
    for key in set(tiny_bundle.manifest) - {"files"}:
        assert known_bundle.manifest[key] == tiny_bundle.manifest[key]


def test_a_channel_survives_its_bundle(known_bundle: Bundle, tiny_channel: KnownChannel) -> None:
    again = read_bundle(known_bundle.path).known
    assert again is not None
    assert again.seen == tiny_channel.part.seen
    assert again.manifest["sets"] == [
        {"name": "photos", "generated": False, "rows": 240},
        {"name": "coarse", "generated": True, "rows": 240},
    ]
    arrays = again.head.to_arrays()
    for name, array in tiny_channel.head.to_arrays().items():
        np.testing.assert_array_equal(arrays[name], array)


def change(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda known: known.update(values)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "patch": change(patch=16),
    "patch that the graph has not": change(side=96, patch=64),
    "side": change(side="192"),
    "sets": change(sets=[1]),
    "names": change(sets=[{"name": "photos", "generated": False}] * 2),
    "classes": change(sets=[{"name": "photos", "generated": True}, {"name": "coarse", "generated": True}]),
    "files": change(files=["known.bin"]),
    "no weights": change(files=["known.xml"]),
    "measured": change(measured="none"),
    "another file": change(files=["known.xml", "../known.bin"]),
    "a key less": lambda known: known.pop("least_side"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_channel_is_refused(known_bundle: Bundle, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(known_bundle.path, folder)
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    DAMAGES[what](manifest["known_generator"])
    (folder / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError):
        Detector.load(folder)


def test_a_channel_without_its_arrays_is_refused(known_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(known_bundle.path, folder)
    manifest = json.loads((folder / "bundle.json").read_text("utf-8"))
    del manifest["files"]["known.safetensors"]
    (folder / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleError, match=r"known\.safetensors"):
        read_bundle(folder)


def test_company_changes_no_bit(known_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    detector = Detector.load(known_bundle.path)
    Image.open(examples / "generated-man.jpg").resize((400, 400)).save(tmp_path / "small.png")
    files = [*sorted(examples.glob("*.jpg")), tmp_path / "small.png"] * 2
    assert list(detector.detect_many(files)) == [detector.detect(file) for file in files]


def test_the_smallest_alpha_that_can_flag(known_bundle: Bundle, tiny_bundle: Bundle) -> None:
    first = 1 / (len(known_bundle.conformal.scores) + 1)
    assert Detector.load(tiny_bundle.path).smallest_p == first
    known = 1 / (120 + 1)  # of the calibration faces of the fixture
    assert Detector.load(known_bundle.path).smallest_p == known


def test_both_channels_are_shown_to_people(known_bundle: Bundle, examples: Path) -> None:
    result = CliRunner().invoke(
        app, ["detect", "--model", str(known_bundle.path), str(examples / "generated-man.jpg")]
    )
    assert "known p" in result.output
    assert "both p" in result.output
    assert "by both channels' scores together" in result.output
    told = CliRunner().invoke(app, ["info", str(known_bundle.path)]).output
    assert "known generators" in told and "coarse" in told
