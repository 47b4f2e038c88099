"""Fit, save, load, score and verdicts of the detector, on a tiny bundle of real parts."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import TINY_DIM, TINY_TEXTURES

from lensborn import defaults, photo
from lensborn import detector as module
from lensborn.bundle import Bundle, BundleError
from lensborn.calibration import Conformal
from lensborn.contrast import Contrast
from lensborn.density import Mixture
from lensborn.detector import Detector, ModelInfo, half_of, judge
from lensborn.faces import FaceFinder
from lensborn.features import read_encoder
from lensborn.graph import cores, threads
from lensborn.photo import read_photo


def test_examples(detector: Detector, examples: Path) -> None:
    paths = sorted(examples.glob("*.jpg"))
    found = list(detector.detect_many(paths))
    assert [detection.path for detection in found] == [str(path) for path in paths]
    assert [detection.status for detection in found] == ["ok"] * 4
    faces = {Path(detection.path).stem: detection.faces for detection in found}
    assert [len(faces[name]) for name in sorted(faces) if name != "group-of-eight"] == [1, 1, 1]
    assert 50 <= len(faces["group-of-eight"]) <= 66  # eight is the name only: some sixty people wave in it
    areas = [face.box[2] * face.box[3] for face in faces["group-of-eight"]]
    assert areas == sorted(areas, reverse=True)
    portrait = found[-1]
    assert (portrait.width, portrait.height) == (800, 800)
    assert portrait.camera["model"] == "X-T10"
    assert portrait.camera["f_number"] == pytest.approx(1.4)
    assert portrait.camera["exposure_time_s"] == pytest.approx(1 / 4000)


def test_detect_equals_the_parts(detector: Detector, examples: Path) -> None:
    face = detector.detect(examples / "generated-man.jpg").faces[0]
    (photo,) = module.read_faces([examples / "generated-man.jpg"], detector.preprocessing)
    score = detector.score(photo.crops)
    assert face.score == pytest.approx(score[0], rel=1e-6)
    at_least = (detector.conformal.scores >= face.score).sum()
    assert face.p_value == (1 + at_least) / (len(detector.conformal.scores) + 1)


def test_save_and_load_give_the_same_scores(
    tiny_bundle: Bundle, detector: Detector, example_crops: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    again = Detector.load(detector.save(tmp_path / "again").path)
    np.testing.assert_array_equal(again.score(example_crops[:50]), detector.score(example_crops[:50]))
    assert again.info == detector.info == ModelInfo("tiny", tiny_bundle.sha256, 0.05)
    with pytest.raises(BundleError, match="exists"):
        detector.save(tmp_path / "again")


def test_alpha_moves_the_verdict_and_nothing_else(tiny_bundle: Bundle, examples: Path) -> None:
    picture = examples / "portrait-fujifilm-x-t10.jpg"
    (face,) = Detector.load(tiny_bundle.path).detect(picture).faces
    (strict,) = Detector.load(tiny_bundle.path, alpha=face.p_value / 2).detect(picture).faces
    (lax,) = Detector.load(tiny_bundle.path, alpha=face.p_value).detect(picture).faces
    assert (strict.verdict, lax.verdict) == ("photographic", "ai_generated")
    assert strict.p_value == lax.p_value == face.p_value


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_alpha_outside_its_range_is_refused(tiny_bundle: Bundle, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        Detector.load(tiny_bundle.path, alpha)


def test_verdicts_and_reasons() -> None:
    verdict, reasons = judge(0.031, 0.031, side=200, alpha=0.05)
    assert verdict == "ai_generated"
    assert reasons == ("no more than 3.1 % of calibration photographs look this unusual",)
    verdict, reasons = judge(0.43, 0.43, side=200, alpha=0.05)
    assert verdict == "photographic"
    assert reasons[0].startswith("no more unusual than photographs: 43 %")
    verdict, reasons = judge(0.001, 0.001, side=52, alpha=0.05)
    assert verdict == "unsure"
    assert reasons == ("the crop is 52 px, below the 80 px that the model needs",)
    assert judge(0.05, 0.05, side=defaults.MIN_CROP_PX, alpha=0.05)[0] == "ai_generated"


def test_a_face_without_a_finite_score_is_no_verdict(
    detector: Detector, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        detector, "density", type("Broken", (), {"score": lambda _, f: np.full(len(f), np.nan)})()
    )
    detection = detector.detect(examples / "generated-man.jpg")
    assert (detection.status, detection.faces) == ("unreadable", ())


def test_reading_ahead_is_bounded(detector: Detector, examples: Path) -> None:
    asked = []

    def paths() -> object:
        for number in range(module.READ_AHEAD + threads() + 5):
            asked.append(number)
            yield examples / "generated-man.jpg"

    found = detector.detect_many(paths())
    next(found)
    assert len(asked) == module.READ_AHEAD + threads()
    found.close()


def test_a_wrong_kind_of_argument_is_told(detector: Detector, examples: Path) -> None:
    with pytest.raises(TypeError, match="detect_bytes"):
        detector.detect((examples / "generated-man.jpg").read_bytes())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="as bytes, not str"):
        detector.detect_bytes("abc", "abc")  # type: ignore[arg-type]
    assert detector.detect_bytes(bytearray(b"abc"), "abc").status == "unreadable"
    with pytest.raises(TypeError, match="several paths"):
        detector.detect_many(str(examples / "generated-man.jpg"))


def test_an_alpha_of_numpy_can_be_written(tiny_bundle: Bundle, examples: Path) -> None:
    detector = Detector.load(tiny_bundle.path, alpha=np.float32(0.25))  # type: ignore[arg-type]
    assert json.loads(json.dumps(detector.detect(examples / "generated-man.jpg").to_dict()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_is_told_to_load_and_may(tiny_bundle: Bundle, examples: Path, tmp_path: Path) -> None:
    """A child would wait for ever for the threads of its parent."""
    (tmp_path / "forks.py").write_text(FORKS)
    words = [sys.executable, tmp_path / "forks.py", tiny_bundle.path, examples / "generated-man.jpg"]
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["told", "told", "ok"]


FORKS = """
import os, sys
from lensborn import Detector

bundle, picture = sys.argv[1:]
detector = Detector.load(bundle)
detector.detect(picture)
child = os.fork()
if not child:
    for work in (lambda: detector.detect(picture), lambda: list(detector.detect_many([picture]))):
        try:
            work()
        except RuntimeError as error:
            print("told" if "load it in the process" in str(error) else error, flush=True)
    print(Detector.load(bundle).detect(picture).status, flush=True)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_nothing_is_told_to_anyone_and_no_process_started(
    tiny_bundle: Bundle, examples: Path, tmp_path: Path
) -> None:
    """OpenVINO's telemetry starts a process to send with, and keeps a number of the user below their home."""
    code = (
        "import multiprocessing, sys\nmultiprocessing.Process.start = None\nfrom lensborn import Detector\n"
        f"assert Detector.load({str(tiny_bundle.path)!r}).detect({str(examples / 'generated-man.jpg')!r}).faces\n"
        "import openvino\nassert not {'openvino_telemetry', 'openvino.tools.ovc'} & sys.modules.keys()\n"
        "assert callable(openvino.convert_model) and not hasattr(openvino, 'nothing')\n"
        "from openvino import convert_model\nassert 'openvino_telemetry' not in sys.modules"
    )
    environment = os.environ | {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert not [*tmp_path.iterdir()]


def test_company_changes_no_bit(detector: Detector, examples: Path) -> None:
    files = sorted(examples.glob("*.jpg")) * 3
    assert list(detector.detect_many(files)) == [detector.detect(file) for file in files]


def test_threads_that_share_a_detector_do_not_wait_for_ever(detector: Detector, examples: Path) -> None:
    picture = examples / "generated-man.jpg"
    expected = detector.detect(picture)
    with ThreadPoolExecutor(4 * cores()) as callers:
        assert list(callers.map(detector.detect, [picture] * 20, timeout=60)) == [expected] * 20


def test_threads_end_with_the_detector(tiny_bundle: Bundle, examples: Path) -> None:
    before = set(threading.enumerate())
    detector = Detector.load(tiny_bundle.path)
    detector.detect(examples / "generated-man.jpg", alone=False)
    assert set(threading.enumerate()) == before
    detector.detect(examples / "generated-man.jpg")
    started = set(threading.enumerate()) - before
    assert 1 <= len(started) <= cores()
    del detector
    gc.collect()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_bytes_are_judged_as_their_file(detector: Detector, examples: Path, tmp_path: Path) -> None:
    whole = (examples / "generated-man.jpg").read_bytes()
    for content in (whole, whole[: len(whole) // 2], b"", b"no picture"):
        (tmp_path / "a.jpg").write_bytes(content)
        assert detector.detect_bytes(content, str(tmp_path / "a.jpg")) == detector.detect(tmp_path / "a.jpg")
    portrait = examples / "portrait-fujifilm-x-t10.jpg"
    assert detector.detect_bytes(portrait.read_bytes(), str(portrait)) == detector.detect(portrait)


def test_large_pictures_are_decoded_one_at_a_time(
    detector: Detector, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    most = 0

    def watched(*arguments: object) -> object:
        nonlocal most
        inside.append(1)
        most = max(most, len(inside))
        time.sleep(0.02)
        inside.pop()
        return cut(*arguments)

    cut = module._cut_faces
    monkeypatch.setattr(module, "_cut_faces", watched)
    monkeypatch.setattr(module, "LARGE_PX", 1000)
    assert len(list(detector.detect_many([examples / "generated-man.jpg"] * 6))) == 6
    assert most == 1


def test_a_picture_beyond_the_memory_says_so(
    detector: Detector, examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether decoding or what comes after finds that out."""

    def full(*_: object) -> None:
        raise MemoryError

    for place, name in ((photo, "_pixels"), (FaceFinder, "find"), (detector.encoder, "encode")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            assert detector.detect(examples / "generated-man.jpg").error == photo.NO_MEMORY


def test_interruption_passes(detector: Detector, examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(crops: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(detector.encoder, "encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        detector.detect(examples / "generated-man.jpg")


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_an_unexpected_error_is_the_file_s_alone(
    detector: Detector, examples: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail_for_one(path: Path) -> object:
        if path.name == "generated-man.jpg":
            raise error
        return read_photo(path)

    monkeypatch.setattr(module, "read_photo", fail_for_one)
    bad, good = detector.detect_many([examples / "generated-man.jpg", examples / "generated-woman.jpg"])
    assert (bad.status, good.status) == ("unreadable", "ok")
    assert bad.error and set(bad.camera.values()) == {None}
    assert (bad.width, bad.height, bad.faces) == (None, None, ())


def test_fit_keeps_groups_together_and_the_promise(tiny_export: Path) -> None:
    """Photographs from one normal distribution, three faces each: of new ones, alpha is flagged."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3000, TINY_DIM)).astype(np.float32)
    groups = [f"photo {number // 3}" for number in range(3000)]
    fitted = Detector.fit(
        features, groups, read_encoder(tiny_export), name="n", population="normal", n_components=2
    )
    calibrate = np.array([half_of(group) == "calibrate" for group in groups])
    expected = Conformal.fit(fitted.density.score(features[calibrate])).scores
    np.testing.assert_array_equal(fitted.conformal.scores, expected)
    fresh = fitted.density.score(rng.normal(size=(4000, TINY_DIM)).astype(np.float32))
    flagged = (fitted.conformal.p_values(fresh) <= 0.05).mean()
    assert flagged == pytest.approx(0.05, abs=0.02)
    by_construction, honest = fitted.manifest["measured"][1:]
    assert by_construction["share"] <= 0.05
    assert honest["low"] <= 0.05 <= honest["high"]


def test_an_encoder_with_textures_gets_a_contrast(
    contrast_bundle: Bundle, tiny_bundle: Bundle, example_crops: npt.NDArray[np.uint8], examples: Path
) -> None:
    detector = Detector.load(contrast_bundle.path)
    assert isinstance(detector.density, Contrast)
    assert detector.encoder_export.texture_dim == detector.density.n_textures == TINY_TEXTURES
    assert not isinstance(Detector.load(tiny_bundle.path).density, Contrast)
    features = detector.encoder.encode(example_crops)
    for_fit = [half_of(str(number)) == "fit" for number in range(len(features))]
    again = Contrast.fit(features[for_fit], TINY_TEXTURES)
    np.testing.assert_array_equal(detector.score(example_crops), again.score(features))
    assert f"{TINY_DIM} features and {TINY_TEXTURES} textures. Contrast fitted on\n" in detector.card
    for detection in detector.detect_many([examples / "generated-man.jpg", examples / "group-of-eight.jpg"]):
        assert detection.status == "ok" and all(0 < face.p_value <= 1 for face in detection.faces)
        assert detection == detector.detect(detection.path)


def test_the_density_can_be_chosen(textured_export: Path, tiny_export: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, TINY_DIM + TINY_TEXTURES)).astype(np.float32)
    groups = [str(number) for number in range(len(features))]
    textured, plain = read_encoder(textured_export), read_encoder(tiny_export)
    told = {"name": "n", "population": "p"}
    mixture = Detector.fit(features, groups, textured, **told, density="mixture", n_components=1)
    assert isinstance(mixture.density, Mixture)
    assert "Mixture fitted on" in mixture.card
    with pytest.raises(ValueError, match="this one does not: fit a mixture"):
        Detector.fit(features[:, :TINY_DIM], groups, plain, **told, density="contrast")
    with pytest.raises(ValueError, match="density must be one of"):
        Detector.fit(features, groups, textured, **told, density="contrasts")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a contrast needs 50 .* add photographs, or take a larger alpha"):
        Detector.fit(features[:80], groups[:80], textured, **told)


def test_too_few_photographs_are_refused_with_a_remedy(tiny_export: Path) -> None:
    features = np.zeros((30, TINY_DIM), np.float32)
    with pytest.raises(ValueError, match=r"too few photographs: .* add photographs"):
        Detector.fit(
            features, [str(n) for n in range(30)], read_encoder(tiny_export), name="n", population="p"
        )
