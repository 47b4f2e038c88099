"""Faces: the model's decoding, the merging, the crop, and finding on shipped and known pictures."""

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import openvino
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from lensborn import defaults, faces
from lensborn.faces import Face, FaceFinder, crop_face, crop_square, decode, looks, merge

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data"
SINGLES = ["portrait-fujifilm-x-t10.jpg", "generated-woman.jpg", "generated-man.jpg"]


def load(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def finder() -> FaceFinder:
    return FaceFinder()


def shares(face: Face, box: tuple[float, float, float, float]) -> float:
    """Intersection over union."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = face.box, box
    common = max(min(ax + aw, bx + bw) - max(ax, bx), 0) * max(min(ay + ah, by + bh) - max(ay, by), 0)
    return common / (aw * ah + bw * bh - common)


# --- finding ------------------------------------------------------------------------------------------


# What libfacedetection 0.0.3 itself (yuface 2023.5.1) gives for every STEP-th pixel of the examples, cut to whole
# pixels: box and points.
STEPS = {SINGLES[0]: 2, SINGLES[1]: 3, SINGLES[2]: 3}
LIBRARY = {
    SINGLES[0]: [113, 76, 141, 194, 154, 151, 217, 154, 186, 192, 155, 217, 211, 219],
    SINGLES[1]: [80, 53, 207, 271, 116, 160, 212, 155, 154, 213, 133, 259, 213, 254],
    SINGLES[2]: [81, 60, 205, 273, 122, 156, 219, 160, 156, 215, 125, 255, 210, 258],
}


@pytest.mark.parametrize("name", SINGLES)
def test_model_gives_what_libfacedetection_gives(name: str) -> None:
    core = openvino.Core()
    model = core.compile_model(faces.MODEL, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    pixels = load(EXAMPLES / name)[:: STEPS[name], :: STEPS[name]]
    padded = np.zeros((1, 416, 416, 3) if len(pixels) == 400 else (1, 352, 352, 3), np.uint8)
    padded[0, : len(pixels), : len(pixels)] = pixels
    levels = model(padded)
    rows = np.concatenate([decode(levels[f"stride{s}"][0], s, 0.5) for s in (8, 16, 32)])
    best = rows[rows[:, 0].argmax(), 1:]
    difference = best - LIBRARY[name]
    assert difference.min() > -0.05
    assert difference.max() < 1.05


@pytest.mark.parametrize("name", SINGLES)
def test_one_face_in_each_portrait_with_landmarks_in_order(finder: FaceFinder, name: str) -> None:
    (face,) = finder.find(load(EXAMPLES / name))
    x, y, w, h = (STEPS[name] * value for value in LIBRARY[name][:4])
    assert shares(face, (x, y, w, h)) > 0.8
    assert face.confidence > 0.85
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_mirrored_picture_gives_mirrored_landmarks(finder: FaceFinder) -> None:
    pixels = load(EXAMPLES / SINGLES[1])
    (face,) = finder.find(pixels)
    (mirrored,) = finder.find(np.ascontiguousarray(pixels[:, ::-1]))
    back = mirrored.landmarks[[1, 0, 2, 4, 3]] * (-1, 1) + (pixels.shape[1] - 1, 0)
    eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    assert np.linalg.norm(back - face.landmarks, axis=1).max() < 0.12 * eyes


def test_channel_order_is_rgb(finder: FaceFinder) -> None:
    pixels = load(EXAMPLES / SINGLES[0])
    swapped = finder.find(np.ascontiguousarray(pixels[..., ::-1]))
    assert max((face.confidence for face in swapped), default=0) < finder.find(pixels)[0].confidence


def test_group_photograph(finder: FaceFinder) -> None:
    # Despite its name the picture shows more than fifty people, with faces of 60 to 150 px. The first of these
    # three lies on the floor, his face tilted.
    found = finder.find(load(EXAMPLES / "group-of-eight.jpg"))
    sure = [face for face in found if face.confidence >= 0.7]
    assert 50 <= len(sure) <= 58
    for box in [(1286, 1953, 128, 149), (2813, 1584, 101, 118), (130, 995, 90, 120)]:
        assert max(shares(face, box) for face in sure) > 0.5
    areas = [face.box[2] * face.box[3] for face in found]
    assert areas == sorted(areas, reverse=True)


def test_of_a_mosaic_the_largest_faces_are_found(finder: FaceFinder, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = crop_face(load(EXAMPLES / SINGLES[2]), (238, 190, 602, 771), 46)
    pixels = np.tile(tile, (34, 34, 1))
    found = finder.find(pixels)
    assert len(found) == defaults.MAX_FACES == 1000
    monkeypatch.setattr(defaults, "MAX_FACES", 5000)
    every = finder.find(pixels)
    assert len(every) > 1000
    assert [face.box for face in found] == [face.box for face in every[:1000]]
    assert found[-1].box[2] * found[-1].box[3] >= max(face.box[2] * face.box[3] for face in every[1000:])


@pytest.mark.parametrize("side", [64, 100, 300, 1000])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_face_that_fills_the_picture(finder: FaceFinder, side: int, scale: float) -> None:
    pixels = load(EXAMPLES / SINGLES[1])
    (face,) = finder.find(crop_face(pixels, (238, 190, 602, 771), side, scale))
    assert face.box[3] > 0.6 * side


@pytest.mark.parametrize("name", SINGLES)
def test_a_portrait_is_known_at_a_glance(
    finder: FaceFinder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = load(EXAMPLES / name)
    (glanced,) = finder.find(pixels)
    assert finder._portrait(pixels, None) is not None
    monkeypatch.setattr(faces, "GLANCED", (0, 0))
    (looked_at,) = finder.find(pixels)
    assert shares(glanced, looked_at.box) > 0.9
    assert np.abs(glanced.landmarks - looked_at.landmarks).max() < 0.1 * glanced.box[3]


@pytest.mark.parametrize("size", [80, 120, 240])
def test_a_small_face_beside_a_large_one_is_found(finder: FaceFinder, size: int) -> None:
    pixels = cv2.resize(load(EXAMPLES / SINGLES[0]), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    pixels[:size, :size] = cv2.resize(load(EXAMPLES / SINGLES[1]), (size, size), interpolation=cv2.INTER_AREA)
    assert finder._portrait(pixels, None) is None
    assert len(finder.find(pixels)) == 2


def test_a_second_face_need_not_be_sure_to_be_looked_at_again(
    finder: FaceFinder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = cv2.resize(load(EXAMPLES / SINGLES[0]), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    pixels[:50, :50] = cv2.resize(load(EXAMPLES / SINGLES[1]), (50, 50), interpolation=cv2.INTER_AREA)
    assert finder._portrait(pixels, None) is None
    monkeypatch.setattr(faces, "SUSPECT", defaults.MIN_CONFIDENCE)
    assert finder._portrait(pixels, None) is not None


def test_pictures_that_are_no_portraits_of_middling_size_get_all_looks(finder: FaceFinder) -> None:
    portrait = load(EXAMPLES / SINGLES[0])
    for side in (384, 1025):
        pixels = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA)
        every = merge(finder._candidates(looks(pixels), finder.min_confidence, None))
        np.testing.assert_array_equal(finder.find(pixels)[0].landmarks.ravel(), every[0, 5:])
    small = np.zeros((1000, 1000, 3), np.uint8)
    small[:200, :200] = cv2.resize(portrait, (200, 200), interpolation=cv2.INTER_AREA)
    assert finder._portrait(small, None) is None
    assert len(finder.find(small)) == 1


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 1))
def test_shrinking_keeps_the_mean(height: int, width: int, share: float) -> None:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    to = max(round(share * height), 1), max(round(share * width), 1)
    shrunk = faces._shrunk(pixels, *to)
    assert shrunk.shape == (*to, 3)
    assert shrunk.dtype == np.uint8
    if min(to) > 20:
        assert np.abs(shrunk.mean(axis=(0, 1)) - pixels.mean(axis=(0, 1))).max() < 4


def test_shrinking_leaves_no_pixel_out() -> None:
    stripes = np.zeros((600, 600, 3), np.uint8)
    stripes[:, ::2] = 255
    for side in (150, 200, 299, 320, 301):
        shrunk = faces._shrunk(stripes, side, side).astype(float)
        assert abs(shrunk.mean() - 127.5) < 3


@pytest.mark.parametrize("width", [100, 1500, 4000])
def test_small_face_in_a_large_picture(finder: FaceFinder, width: int) -> None:
    portrait = Image.open(EXAMPLES / SINGLES[2]).convert("RGB")
    canvas = Image.new("RGB", (width, width * 3 // 4 + 20), (120, 130, 110))
    at = (width // 2 - 45, width // 3 - 30)
    canvas.paste(portrait.resize((89, 89)), at)
    (face,) = finder.find(np.asarray(canvas))
    assert shares(face, (at[0] + 21, at[1] + 19, 51, 64)) > 0.6


def test_no_face_in_pictures_without_one(finder: FaceFinder) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:300, :400]
    for picture in (
        rng.integers(0, 256, (300, 400, 3)),
        np.stack([x / 2, y / 2, (x + y) / 4], axis=2),
        np.full((64, 64, 3), 128),
        np.zeros((1, 1, 3)),
        np.full((5000, 3, 3), 200),
    ):
        assert finder.find(picture.astype(np.uint8)) == []


@pytest.mark.parametrize(
    "pixels", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)]
)
def test_other_arrays_are_refused_with_the_remedy(finder: FaceFinder, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="read_photo"):
        finder.find(pixels)


def test_boxes_lie_inside_the_picture(finder: FaceFinder) -> None:
    pixels = load(EXAMPLES / SINGLES[1])[300:800, 350:700]
    for face in finder.find(pixels):
        x, y, w, h = face.box
        assert 0 <= x <= x + w <= pixels.shape[1]
        assert 0 <= y <= y + h <= pixels.shape[0]


def test_importing_faces_loads_neither_openvino_nor_torch() -> None:
    code = "import sys, lensborn.faces; sys.exit('openvino' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- known faces --------------------------------------------------------------------------------------


def sample(table: str, count: int) -> list[dict[str, str]]:
    if not (DATA / table).is_file():
        pytest.skip(f"needs {table} in ../shared/data")
    with (DATA / table).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [rows[i] for i in np.random.default_rng(defaults.SEED).permutation(len(rows))[:count]]


def test_known_faces_are_found(finder: FaceFinder) -> None:
    rows = sample("faces.csv", 100)
    assert sum(bool(finder.find(load(DATA / row["file"]))) for row in rows) >= 98


def test_landmarks_agree_with_the_table(finder: FaceFinder) -> None:
    errors = []
    for row in sample("photos.csv", 60):
        names = ("eye_left", "eye_right", "nose", "mouth_left", "mouth_right")
        known = np.array([[float(row[f"{name}_{axis}"]) for axis in "xy"] for name in names])
        eyes = max(np.linalg.norm(known[1] - known[0]), 1.0)
        found = finder.find(load(DATA / row["file"]))
        errors += [min(np.linalg.norm(face.landmarks - known, axis=1).mean() / eyes for face in found)]
    assert np.median(errors) < 0.12  # the table's own error is 0.09, see docs/faces.md


# --- decoding and merging -----------------------------------------------------------------------------


def test_decode_places_a_box_by_its_cell() -> None:
    level = np.zeros((4, 5, 16), np.float32)
    level[2, 3] = [0.9, 0.4, 0.5, -0.25, np.log(2), np.log(3), *[1, 2] * 5]
    (row,) = decode(level, 8, 0.5)
    centre = (3.5 * 8, 1.75 * 8)
    assert row[0] == pytest.approx(0.6)
    assert row[1:5] == pytest.approx([centre[0] - 8, centre[1] - 12, 16, 24], abs=1e-4)
    assert row[5:] == pytest.approx([4 * 8, 4 * 8] * 5)
    assert decode(level, 8, 0.61).shape == (0, 15)


def candidate(confidence: float, x: float, y: float, w: float, h: float) -> list[float]:
    return [confidence, x, y, w, h, *[0.0] * 10]


def test_merge_averages_what_agrees_weighted_by_confidence() -> None:
    kept = merge(np.array([candidate(0.9, 0, 0, 20, 20), candidate(0.6, 1, 0, 20, 20)], np.float32))
    assert kept[:, :5] == pytest.approx(np.array([[0.9, 0.4, 0, 20, 20]]))


def test_merge_drops_overlapping_and_nested_and_keeps_neighbours() -> None:
    rows = [
        candidate(0.7, 2, 0, 10, 10),  # overlaps the best
        candidate(0.9, 0, 0, 10, 10),
        candidate(0.8, 4, 4, 3, 3),  # inside the best
        candidate(0.65, 9, 0, 10, 10),  # a neighbour
    ]
    kept = merge(np.array(rows, np.float32))
    assert kept[:, 0] == pytest.approx([0.9, 0.65])
    assert merge(np.zeros((0, 15), np.float32)).shape == (0, 15)


@pytest.mark.parametrize("shape", [(64, 64), (3000, 4100), (2000, 10000), (5000, 3)])
def test_looks_cover_the_picture_and_stay_small(shape: tuple[int, int]) -> None:
    pixels = np.broadcast_to(np.uint8(255), (*shape, 3))
    found = list(looks(np.ascontiguousarray(pixels)))
    finest = max(look.scale for look in found)
    covered = np.zeros([max(round(side * finest), 1) for side in shape], bool)
    for look in found:
        height, width = look.canvas().shape[:2]
        assert height % faces.CELL == width % faces.CELL == 0
        assert max(height, width) <= faces.TILE
        if look.scale == finest:
            x, y = (max(at, 0) for at in look.origin)
            covered[y : y + height, x : x + width] = True
    assert covered.all()
    assert finest == pytest.approx(
        min(1, max(faces.WIDE / max(shape), min(28 / 64, faces.FINE / max(shape)))), 1e-3
    )


# --- the crop -----------------------------------------------------------------------------------------

lengths = st.floats(1, 5000)
boxes = st.tuples(st.floats(-50, 300), st.floats(-50, 300), st.floats(1, 400), st.floats(1, 400))
NOISE = np.random.default_rng(0).integers(0, 256, (300, 270, 3), dtype=np.uint8)


@given(st.tuples(st.floats(-200, 5000), st.floats(-200, 5000), lengths, lengths), lengths, lengths)
def test_crop_square_lies_inside_the_picture(
    box: tuple[float, float, float, float], width: float, height: float
) -> None:
    x0, y0, side = crop_square(box, int(width), int(height))
    assert 0 < side <= min(int(width), int(height))
    assert side <= defaults.CROP_SCALE * max(box[2:])
    assert 0 <= x0 <= int(width) - side + 1e-6
    assert 0 <= y0 <= int(height) - side + 1e-6


def test_crop_square_is_scaled_about_the_centre_and_shifted_at_the_border() -> None:
    assert crop_square((100, 100, 40, 100), 1000, 1000) == pytest.approx((55, 85, 130))
    assert crop_square((0, 0, 100, 100), 1000, 1000) == pytest.approx((0, 0, 130))
    assert crop_square((0, 0, 100, 100), 120, 1000) == pytest.approx((0, 0, 120))


def test_crop_face_has_no_aliasing() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = crop_face(stripes, (0, 0, 512, 512), 64)
    assert crop.shape == (64, 64, 3)
    assert crop.dtype == np.uint8
    assert np.abs(crop.astype(int) - 127).max() <= 8  # 128 where every eighth column is picked


def test_crop_of_a_crop_cut_at_whole_pixels_is_the_same() -> None:
    pixels = load(EXAMPLES / SINGLES[0])
    box = (218, 160, 300, 400)  # square: x0 = 108, y0 = 100, side = 520
    x0, y0, side = (round(v) for v in crop_square(box, 800, 800))
    saved = pixels[y0 : y0 + side, x0 : x0 + side]
    again = crop_face(saved, (0, 0, side, side), 224, 1.0)
    assert np.array_equal(crop_face(pixels, box, 224), again)


@given(boxes, st.integers(1, 60), st.integers(1, 20_000))
@example((0.0, 1.0, 1.0, 1.0), 2, 1)  # as wide as it was and not as high: Pillow resizes down first
def test_a_large_face_resized_in_bands_is_the_same(
    box: tuple[float, float, float, float], size: int, band: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 170, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faces, "BAND_PX", band)
        banded = crop_face(pixels, box, size)
    assert np.array_equal(banded, crop_face(pixels, box, size))


@given(boxes)
def test_crop_face_takes_any_box(box: tuple[float, float, float, float]) -> None:
    pixels = np.full((200, 170, 3), 77, np.uint8)
    assert (crop_face(pixels, box, 16) == 77).all()
