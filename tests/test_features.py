"""The encoder against a literal computation of its graph, and the refusal of what is no encoder."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import TINY, TINY_DIM, TINY_TEXTURES, write_tiny_encoder
from hypothesis import given
from hypothesis import strategies as st

from lensborn import features
from lensborn.bundle import Bundle, BundleError
from lensborn.features import Encoder, Preprocessing, read_encoder

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def literal_features(crops: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.float64]:
    """The tiny graph again, as loops over positions."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 0.2, (16, 3, 5, 5)).astype(np.float32).astype(np.float64)
    weight = rng.normal(0, 1, (TINY_DIM, 16)).astype(np.float32).astype(np.float64)
    pixels = (crops / 255 - np.array(TINY.mean)) / np.array(TINY.std)  # (N, S, S, 3)
    maps = [
        np.maximum(np.einsum("nyxc,kcyx->nk", pixels[:, y : y + 5, x : x + 5], kernel), 0)
        for y in range(0, TINY.size - 4, 2)
        for x in range(0, TINY.size - 4, 2)
    ]
    return np.mean(maps, axis=0) @ weight.T


def test_encoder_takes_rgb_in_0_to_255_and_keeps_the_order(tiny_export: Path) -> None:
    crops = np.random.default_rng(1).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    found = Encoder(tiny_export / "encoder.xml").encode(crops)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, literal_features(crops, seed=0), rtol=1e-3, atol=1e-4)


def test_batching_changes_nothing(tiny_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = np.random.default_rng(2).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    encoder = Encoder(tiny_export / "encoder.xml")
    whole = encoder.encode(crops)
    monkeypatch.setattr(features, "CHUNK", 2)
    np.testing.assert_array_equal(encoder.encode(crops), whole)
    np.testing.assert_array_equal(np.concatenate([encoder.encode(crop[None]) for crop in crops]), whole)
    assert encoder.encode(crops[:0]).shape == (0, TINY_DIM)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 31, 32, 3), np.uint8),
        ((1, 3, 32, 32), np.uint8),
        ((32, 32, 3), np.uint8),
        ((1, 32, 32, 3), np.float32),
    ],
)
def test_encoder_refuses_other_crops(tiny_export: Path, shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match=r"crops must be \(N, 32, 32, 3\) uint8"):
        Encoder(tiny_export / "encoder.xml").encode(np.zeros(shape, dtype))


def test_encoder_is_found_in_a_run_and_in_a_bundle(tiny_export: Path, tiny_bundle: Bundle) -> None:
    export, bundle = read_encoder(tiny_export), read_encoder(tiny_bundle.path)
    assert bundle.preprocessing == export.preprocessing == TINY
    assert bundle.fingerprint == export.fingerprint


def test_fingerprint_depends_on_the_weights(tiny_export: Path, tmp_path: Path) -> None:
    other = write_tiny_encoder(tmp_path / "other", seed=1)
    assert other.fingerprint != read_encoder(tiny_export).fingerprint


def test_what_is_no_encoder_is_refused(tmp_path: Path, tiny_export: Path) -> None:
    with pytest.raises(BundleError, match="holds no encoder"):
        read_encoder(tmp_path)
    (tmp_path / "encoder.xml").write_text("<net/>")
    settings = json.loads((tiny_export / "preprocessing.json").read_text())
    (tmp_path / "preprocessing.json").write_text(json.dumps({**settings, "resample": "nearest"}))
    with pytest.raises(BundleError, match="resized by 'nearest'"):
        read_encoder(tmp_path)
    (tmp_path / "preprocessing.json").write_text("{")
    with pytest.raises(BundleError, match="malformed"):
        read_encoder(tmp_path)
    with pytest.raises(BundleError, match="not a graph"):
        Encoder(tmp_path / "encoder.xml")


@pytest.mark.parametrize(
    "value", [-1, TINY_DIM + TINY_TEXTURES, "many", None, [], float("inf"), float("nan")]
)
def test_textures_are_some_of_the_features(textured_export: Path, tmp_path: Path, value: object) -> None:
    export = read_encoder(textured_export)
    assert (export.feature_dim, export.texture_dim) == (TINY_DIM + TINY_TEXTURES, TINY_TEXTURES)
    (tmp_path / "encoder.xml").write_text("<net/>")
    settings = json.loads((textured_export / "preprocessing.json").read_text())
    (tmp_path / "preprocessing.json").write_text(json.dumps({**settings, "texture_dim": value}))
    with pytest.raises(BundleError, match="malformed"):
        read_encoder(tmp_path)


@given(JSON)
def test_malformed_settings_raise_bundle_error_only(values: object) -> None:
    with pytest.raises(BundleError):
        Preprocessing.from_json(values)


@given(st.sampled_from(sorted(TINY.to_json())), JSON)
def test_one_malformed_setting_is_refused_or_taken(key: str, value: object) -> None:
    try:
        taken = Preprocessing.from_json({**TINY.to_json(), key: value})
    except BundleError:
        return
    assert Preprocessing.from_json(taken.to_json()) == taken
