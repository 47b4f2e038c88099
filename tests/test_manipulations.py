"""Manipulations: what they change, what they leave, and that pristine faces take the same path."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lensborn.cli import app
from lensborn.pretext import manipulations as m

SIDE = 200
LANDMARKS = np.array([[70, 80], [130, 80], [100, 110], [80, 145], [120, 145]], dtype=np.float64)


@pytest.fixture
def face():
    """Smooth noise: sampled once by cubic interpolation it stays close to itself."""
    import cv2

    noise = np.random.default_rng(5).integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    return cv2.GaussianBlur(cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), (0, 0), 3)


def still(monkeypatch):
    monkeypatch.setattr(m, "random_similarity", lambda *_: np.eye(3))


def changed(before, after):
    """Centre (x, y) and extent (w, h) of the pixels that differ clearly."""
    y, x = np.nonzero(np.abs(before.astype(int) - after).max(2) > 4)
    return (x.min(), y.min(), x.max(), y.max())


def test_pristine_without_jitter_is_the_face_itself(face, monkeypatch):
    still(monkeypatch)
    assert np.array_equal(m.manipulate(face, LANDMARKS, m.PRISTINE, np.random.default_rng(0)), face)


def test_eye_flip_mirrors_both_eyes_in_place_and_nothing_else(face, monkeypatch):
    still(monkeypatch)
    out = m.manipulate(face, LANDMARKS, m.EYE_FLIP, np.random.default_rng(0))
    for x in (70, 130):  # near the centre the mask is 1: exact mirror images of each other
        window = np.s_[76:85, x - 6 : x + 7]
        assert np.abs(out[window].astype(int) - face[window][:, ::-1]).max() <= 1
    left, top, right, bottom = changed(face, out)
    assert left < 70
    assert right > 130
    assert top > 60
    assert bottom < 100


@pytest.mark.parametrize(
    ("name", "flip"), [(m.MOUTH_FLIP, np.s_[:, ::-1]), (m.MOUTH_UPSIDE_DOWN, np.s_[::-1])]
)
def test_mouth_flips(face, monkeypatch, name, flip):
    still(monkeypatch)
    out = m.manipulate(face, LANDMARKS, name, np.random.default_rng(0))
    window = np.s_[140:151, 90:111]
    assert np.abs(out[window].astype(int) - face[window][flip]).max() <= 1
    left, top, right, bottom = changed(face, out)
    assert left > 65
    assert right < 135
    assert top > 125
    assert bottom < 165


def test_a_tilted_face_is_flipped_about_its_own_axis(face, monkeypatch):
    still(monkeypatch)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    tilted = (LANDMARKS - 100) @ turn.T + 100
    out = m.manipulate(face, tilted, m.EYE_FLIP, np.random.default_rng(0))
    direction = turn[:, 0]
    for offset in (3.0, 5.0):
        a, b = tilted[0] + offset * direction, tilted[0] - offset * direction
        got, wanted = out[round(a[1]), round(a[0])], face[round(b[1]), round(b[0])]
        assert np.abs(got.astype(int) - wanted).max() < 30  # nearest-pixel comparison of a smooth picture


@pytest.mark.parametrize("name", [m.AFFINE, m.PIECEWISE])
def test_global_distortions_move_pixels_far_more_than_the_jitter(name):
    """Sampled from a picture whose values are coordinates, so the displacement can be read off."""
    y, x = np.mgrid[:SIDE, :SIDE]
    ramp = np.stack([x, y, x], -1).astype(np.uint8)
    inside = np.s_[60:140, 60:140]

    def residual(kind, seed):
        out = m.manipulate(ramp, None, kind, np.random.default_rng(seed))[inside].astype(float)
        source = np.stack([x[inside].ravel(), y[inside].ravel(), np.ones(80 * 80)], 1)
        fit, *_ = np.linalg.lstsq(source, out[..., :2].reshape(-1, 2), rcond=None)
        linear = fit[:2].T
        singular = np.linalg.svd(linear)[1]
        bent = np.abs(source @ fit - out[..., :2].reshape(-1, 2)).mean()
        return singular[0] / singular[1] - 1 if kind != m.PIECEWISE else bent

    pristine = max(residual(m.PRISTINE, seed) for seed in range(10))
    assert pristine < 0.02
    assert min(residual(name, seed) for seed in range(10)) > (0.1 if name == m.AFFINE else 0.3)


def test_pristine_and_manipulated_are_sampled_by_the_same_interpolation(face):
    """Outside the manipulated part the two are equal to the bit, so resampling can't tell them apart."""
    pristine = m.manipulate(face, LANDMARKS, m.PRISTINE, np.random.default_rng(3))
    flipped = m.manipulate(face, LANDMARKS, m.MOUTH_FLIP, np.random.default_rng(3))
    assert np.array_equal(pristine[:110], flipped[:110])
    assert not np.array_equal(pristine, flipped)


def test_a_profile_or_unknown_landmarks_get_a_global_manipulation():
    rng = np.random.default_rng(0)
    profile = LANDMARKS.copy()
    profile[1] = profile[0] + 5
    assert {m.draw_manipulation(profile, SIDE, rng) for _ in range(20)} == {m.AFFINE}
    assert {m.draw_manipulation(None, SIDE, rng) for _ in range(20)} == {m.AFFINE}
    assert {m.draw_manipulation(LANDMARKS, SIDE, rng) for _ in range(80)} == set(m.MANIPULATIONS)


def test_only_parts_whose_place_is_known_are_flipped(face):
    rng = np.random.default_rng(0)
    landmarks = LANDMARKS.copy()
    landmarks[3:] = np.nan  # as in FDF, which marks no mouth
    assert {m.draw_manipulation(landmarks, SIDE, rng) for _ in range(50)} == {m.EYE_FLIP, m.AFFINE}
    assert m.manipulate(face, landmarks, m.EYE_FLIP, rng).shape == face.shape
    with pytest.raises(ValueError, match="global manipulation"):
        m.manipulate(face, landmarks, m.MOUTH_FLIP, rng)
    landmarks[0] = np.nan
    assert {m.draw_manipulation(landmarks, SIDE, rng) for _ in range(20)} == {m.AFFINE}


def test_errors_name_the_remedy(face):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="use one of"):
        m.manipulate(face, LANDMARKS, "nose_flip", rng)
    with pytest.raises(ValueError, match="global manipulation"):
        m.manipulate(face, None, m.EYE_FLIP, rng)


def draw(*photos, out):
    return CliRunner().invoke(app, ["manipulations", *map(str, photos), "--out", str(out)])


def test_the_sheet_is_written_aside(examples: Path, tmp_path: Path):
    """Whoever reads the old sheet meanwhile, reads it to its end; and where the disk is full, it stays."""
    from test_scan import files_of_at_most

    photo, out = examples / "portrait-fujifilm-x-t10.jpg", tmp_path / "sheet.png"
    out.write_bytes(b"old")
    with files_of_at_most(10_000):
        assert draw(photo, out=out).exit_code == 2
    assert out.read_bytes() == b"old"
    with out.open("rb") as old:
        assert draw(photo, out=out).exit_code == 0
        assert old.read() == b"old"
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_file_that_cannot_be_read_is_named(examples: Path, tmp_path: Path):
    (tmp_path / "text.jpg").write_text("not a picture")
    drawn = draw(examples / "portrait-fujifilm-x-t10.jpg", tmp_path / "text.jpg", out=tmp_path / "sheet.png")
    assert drawn.exit_code == 1
    assert f"{tmp_path / 'text.jpg'}: not a JPEG" in drawn.stderr
