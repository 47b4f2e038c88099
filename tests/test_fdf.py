import bz2
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lensborn.datasets.corpus import CorpusError, read_corpus
from lensborn.datasets.fdf import parse_line, parse_tag, photo_of
from lensborn.datasets.layouts import read_pictures

LANDMARKS = [[0.5, 0.5], [0.6, 0.4], [0.4, 0.4], [0.7, 0.4], [0.3, 0.4], [0.8, 0.9], [0.2, 0.9]]
ROW = (
    "10\tExif+IFD0.Make:Canon,Exif+SubIFD.Exposure+Time:1%2F125+sec,Exif+SubIFD.F-Number:F2.8,"
    "Exif+SubIFD.Focal+Length:50.0+mm,Exif+SubIFD.ISO+Speed+Ratings:400\n"
)
NOTE = {
    "EXIF": {
        "Exposure Time": "1/125 sec",
        "Aperture Value": "F2.8",
        "Focal Length": "50.0 mm",
        "ISO Speed Ratings": "400",
    }
}


def face(photo="10", **changed):
    return {
        "author": "someone",
        "bounding_box": [0.25, 0.25, 0.75, 0.75],
        "landmark": LANDMARKS,
        "photo_url": f"http://www.flickr.com/photos/12@N00/{photo}/",
    } | changed


def fdf(root, faces, images="images/128"):
    folder = root / "FDF" / "data" / "fdf"
    (folder / images).mkdir(parents=True)
    (folder / "fdf_metainfo.json").write_text(json.dumps(faces))
    for index in faces:
        Image.new("RGB", (128, 128)).save(folder / images / f"{index}.png")
    return root


def check(crop):
    np.testing.assert_allclose(crop.tags, [2.8, 1 / 125, 50, 400])
    assert (crop.photo, crop.source) == ("10", "12@N00")
    assert crop.box == (32, 32, 64, 64)
    np.testing.assert_allclose(crop.landmarks[:3], [[51.2, 51.2], [76.8, 51.2], [64, 64]], rtol=1e-5)
    assert np.isnan(crop.landmarks[3:]).all()


def test_rows_of_yfcc100m(tmp_path):
    fdf(tmp_path, {"0": face(), "1": face("11")})
    (tmp_path / "yfcc100m_exif").write_text("9\tx\n" + ROW + "11\t\n")
    (crop,) = read_corpus(tmp_path)  # photograph 11 has no EXIF
    check(crop)


def test_packed_rows(tmp_path):
    fdf(tmp_path, {"0": face()})
    (tmp_path / "yfcc100m_exif.bz2").write_bytes(bz2.compress(ROW.encode()))
    check(read_corpus(tmp_path)[0])


def test_a_json_file_a_photograph(tmp_path):
    fdf(tmp_path, {"0": face(), "1": face("11"), "2": face("12")})
    notes = tmp_path / "fdf_ccby2_exif_update_filtered_v2"
    notes.mkdir()
    (notes / "10.json").write_text(json.dumps(NOTE))
    (notes / "11.json").write_text("{")
    (crop,) = read_corpus(tmp_path)
    check(crop)


def test_fdf256_has_two_parts_and_flat_landmarks(tmp_path):
    flat = [value for place in LANDMARKS for value in place]
    for part in ("train", "val"):
        (tmp_path / part / "images").mkdir(parents=True)
        (tmp_path / part / "fdf_metainfo.json").write_text(json.dumps({"0": face(landmark=flat)}))
        Image.new("RGB", (256, 256)).save(tmp_path / part / "images" / "0.PNG")
    (tmp_path / "yfcc100m_exif").write_text(ROW)
    crops = read_corpus(tmp_path)
    assert [crop.file.parts[-3] for crop in crops] == ["train", "val"]
    assert [crop.box for crop in crops] == [(64, 64, 128, 128)] * 2
    assert [(p.label, p.set, p.source) for p in read_pictures(tmp_path)] == [("real", "fdf", "12@N00")] * 2


def test_places_may_be_given_in_pixels(tmp_path):
    pixels = [[x * 256, y * 256] for x, y in LANDMARKS]
    fdf(tmp_path, {"0": face(bounding_box=[64, 64, 192, 192], landmark=pixels)}, "images")
    (tmp_path / "yfcc100m_exif").write_text(ROW)
    (crop,) = read_corpus(tmp_path)
    assert crop.box == (64, 64, 128, 128)
    np.testing.assert_allclose(crop.landmarks[2], [128, 128])


def test_the_largest_copy_of_a_picture_is_taken(tmp_path):
    fdf(tmp_path, {"0": face()})
    images = next(tmp_path.rglob("images"))
    for side in (8, 64):
        (images / str(side)).mkdir()
        Image.new("RGB", (side, side)).save(images / str(side) / "0.png")
    (tmp_path / "yfcc100m_exif").write_text(ROW)
    (crop,) = read_corpus(tmp_path)
    check(crop)
    assert crop.file.parent.name == "128"


def test_training_sees_the_face_and_flips_only_what_is_known(tmp_path):
    pytest.importorskip("torch")
    from lensborn.pretext.corpus import PretextDataset
    from lensborn.pretext.manipulations import AFFINE, EYE_FLIP, draw_manipulation

    fdf(tmp_path, {"0": face()})
    (tmp_path / "yfcc100m_exif").write_text(ROW)
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[22:106, 22:106] = 200  # 1.3 times the box of 64 px about the centre
    Image.fromarray(picture).save(next(tmp_path.rglob("0.png")))
    (crop,) = read_corpus(tmp_path)
    item = PretextDataset([crop], 64, seed=0, delivery=None)[0]
    assert item["pristine"].shape == (3, 64, 64)
    assert (item["pristine"] > 150).float().mean() > 0.97  # nothing of what surrounds the face
    rng = np.random.default_rng(0)
    drawn = {draw_manipulation(crop.landmarks, 83, rng) for _ in range(50)}
    assert drawn == {EYE_FLIP, AFFINE}


@pytest.mark.parametrize(
    "changed",
    [
        {"bounding_box": [1, 0, 0, 1]}, {"bounding_box": [0, 0, math.inf, 1]}, {"bounding_box": [0, 0, 10**400, 1]},
        {"landmark": []}, {"landmark": None}, {"landmark": [[math.nan, 0]] * 7},
    ],
)  # fmt: skip
def test_a_face_without_a_place_is_left_out(tmp_path, changed):
    fdf(tmp_path, {"0": face(**changed), "1": face()})
    (tmp_path / "yfcc100m_exif").write_text(ROW)
    assert [crop.file.stem for crop in read_corpus(tmp_path)] == ["1"]


def test_what_is_missing_is_named(tmp_path):
    fdf(tmp_path, {"0": face()})
    with pytest.raises(CorpusError, match="yfcc100m_exif"):
        read_corpus(tmp_path)
    metainfo = next(tmp_path.rglob("fdf_metainfo.json"))
    metainfo.write_text("[]")
    with pytest.raises(CorpusError, match="metainfo"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/125 sec", 0.008), ("1/125sec", 0.008), ("F2.8", 2.8), ("f/2.8", 2.8), ("28.0 mm", 28),
        ("100", 100),
        ("50/10", 5), ("2 sec", 2), ("F", math.nan), ("0/0", math.nan), ("", math.nan),
        ("2,8", 2.8), ("ISO 400", 400), ("400 0", 400), ("400, 0", 400), ("-1 sec", math.nan),
        ("Unknown (3)", math.nan), ("1.2.3", math.nan), ("nan", math.nan), ("inf", math.nan),
        ("__import__('os')", math.nan),
    ],
)  # fmt: skip
def test_tags_are_parsed_and_never_run(text, value):
    assert parse_tag(text) == pytest.approx(value, nan_ok=True)


@given(st.text(max_size=100))
def test_any_text_is_a_number_or_none(text):
    value = parse_tag(text)
    assert math.isnan(value) or value >= 0
    parse_line(text)
    photo_of({"photo_url": text})


def test_the_owner_falls_back_to_the_address():
    assert photo_of({"photo_url": "http://www.flickr.com/photos/12@N00/10/"}) == ("10", "12@N00")
    assert photo_of({"photo_url": "x", "user_nsid": "n", "author": "a"}) == ("", "n")
    assert photo_of({"photo_url": "x", "author": "a"}) == ("", "a")
    assert photo_of(None) == ("", "")
