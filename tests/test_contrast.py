"""The contrast of length and textures: against a second implementation, and against arrays of strangers."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from lensborn.contrast import GREATER, LEAST, Contrast

Array = NDArray[np.float64]
PLAIN, TEXTURES = 4, 3


def faces(n: int = 300, seed: int = 0) -> Array:
    """Features, and correlated textures away from the origin."""
    rng = np.random.default_rng(seed)
    textures = rng.normal(size=(n, TEXTURES)) @ [[1, 2, 0], [0, 1, 5], [0, 0, 0.1]] + 20
    return np.column_stack([rng.normal(size=(n, PLAIN)) * 3, textures])


FITTED = Contrast.fit(faces(), TEXTURES)


def literal_scores(photographs: Array, rows: Array) -> Array:
    """As the formula is written, one face and one sign at a time."""
    known = photographs[:, PLAIN:]
    means, deviations = known.mean(axis=0), known.std(axis=0)

    def length(row: Array) -> float:
        return float(np.sqrt(sum(x * x for x in row[:PLAIN])))

    def distance(row: Array) -> float:
        away = [(x - m) / s for x, m, s in zip(row[PLAIN:], means, deviations, strict=True)]
        return float(np.sqrt(sum(x * x for x in away) / TEXTURES))

    signs = []
    for sign, times in ((length, 1.0), (distance, -1.0)):
        own = [sign(row) for row in photographs]
        signs.append([times * (sign(row) - np.mean(own)) / np.std(own) for row in rows])
    return np.array([max(pair) for pair in zip(*signs, strict=True)])


def test_scoring_equals_the_formula() -> None:
    fresh = faces(40, seed=1)
    np.testing.assert_allclose(FITTED.score(fresh), literal_scores(faces(), fresh), rtol=1e-6, atol=1e-9)


def test_it_is_the_score_of_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ranks as tools/experiment_scores.py gives, with textures of which each counts by itself."""
    tools = Path(__file__).parent.parent / "tools"
    if not tools.is_dir():
        pytest.skip("the tools are not part of an installation")
    sys.path.insert(0, str(tools))
    import experiment_scores

    columns = {(0,): slice(PLAIN), (3, 4): slice(PLAIN, None)}
    monkeypatch.setattr(experiment_scores, "columns_of", lambda layers, _: columns[layers])
    setting = experiment_scores.Setting(
        layers=(3, 4),
        standard=True,
        dims=0,
        components=1,
        shrinkage=1.0,
        density="length+component",
        join="greatest",
        weights=(1.0, -1.0),
    )
    theirs = experiment_scores.fitted(setting, "", 0, faces(), None)(faces(200, seed=1))
    np.testing.assert_allclose(FITTED.score(faces(200, seed=1)), theirs, rtol=1e-4, atol=1e-4)


def test_longer_features_and_nearer_textures_are_stranger() -> None:
    rows = faces(50, seed=2)
    longer, nearer = rows.copy(), rows.copy()
    longer[:, :PLAIN] *= 1.1
    nearer[:, PLAIN:] -= 0.1 * (rows[:, PLAIN:] - FITTED.textures[0])
    before = FITTED.score(rows)
    for changed in (FITTED.score(longer), FITTED.score(nearer)):
        assert (changed >= before).all()
        assert (changed > before).any()


def test_a_texture_that_stood_still_counts_for_nothing_where_it_moves() -> None:
    rows, fresh = faces(), faces(50, seed=2)
    rows[:, -1] = fresh[:, -1] = 7.0
    found = Contrast.fit(rows, TEXTURES)
    before = found.score(fresh)
    fresh[:, -1] = 8.0
    np.testing.assert_allclose(found.score(fresh), before, rtol=1e-12)


def test_company_changes_no_bit() -> None:
    rows = faces(70, seed=3).astype(np.float32)
    together = FITTED.score(rows)
    assert together.tolist() == [FITTED.score(row[None])[0] for row in rows]
    assert together[::3].tolist() == FITTED.score(rows[::3]).tolist()
    assert FITTED.score(rows[:0]).shape == (0,)


def test_arrays_and_settings_give_the_same_contrast() -> None:
    stored = json.loads(json.dumps(FITTED.settings()))
    assert stored == {
        "kind": "contrast",
        "score": GREATER,
        "n_features": 7,
        "n_textures": 3,
        "n_fitted": 300,
    }
    arrays = load(save({name: np.ascontiguousarray(array) for name, array in FITTED.to_arrays().items()}))
    again = Contrast.from_arrays(arrays, stored)
    assert again.settings() == stored
    assert (again.score(faces()) == FITTED.score(faces())).all()


@pytest.mark.parametrize(
    ("rows", "textures", "message"),
    [
        (faces(), 0, "some of the 7 features"),
        (faces(), 7, "some of the 7 features"),
        (faces(LEAST - 1), TEXTURES, f"too few for a contrast: give {LEAST}"),
        (faces()[0], TEXTURES, r"shape \(N, D\)"),
        (np.where(faces() > 25, np.nan, faces()), TEXTURES, "NaN or infinity"),
        (np.ones((60, 7)), TEXTURES, "textures are alike"),
        (
            np.where(np.arange(7) < PLAIN, 1.0, faces()),
            TEXTURES,
            "features or textures are alike",
        ),
    ],
)
def test_what_cannot_be_fitted_to_is_refused(rows: Array, textures: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Contrast.fit(rows, textures)


def test_wrong_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(N, 7\)"):
        FITTED.score(faces()[:, 1:])
    with pytest.raises(ValueError, match="NaN or infinity"):
        FITTED.score(np.full((1, 7), np.inf))


NUMBERS = st.one_of(st.floats(), st.integers(-3, 3).map(float))
SHAPES = st.one_of(
    st.sampled_from([(2,), (TEXTURES,), (2, TEXTURES)]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(0, 9),
    st.floats(),
    st.text(max_size=4),
    st.just([]),
    st.just("mixture"),
)


@settings(max_examples=200)
@given(
    st.sampled_from(sorted(FITTED.to_arrays())),
    SHAPES,
    NUMBERS,
    st.sampled_from(["kind", "score", "n_features", "n_textures", "other"]),
    VALUES,
)
def test_arrays_of_strangers_load_or_raise_value_error(
    name: str, shape: tuple[int, ...], number: float, key: str, value: Any
) -> None:
    arrays, given_settings = FITTED.to_arrays(), FITTED.settings()
    for parts in (
        ({**arrays, name: np.full(shape, number)}, given_settings),
        (arrays, {**given_settings, key: value}),
    ):
        try:
            contrast = Contrast.from_arrays(*parts)
        except ValueError:
            continue
        assert np.isfinite(contrast.score(np.zeros((2, contrast.n_features)))).all()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("textures", np.ones(TEXTURES)),
        ("textures", np.ones((2, TEXTURES + 1))),
        ("textures", np.ones((3, TEXTURES))),
        ("textures", np.full((2, TEXTURES), np.nan)),
        ("textures", np.full((2, TEXTURES), 1e300)),
        ("textures", np.zeros((2, TEXTURES))),
        ("lengths", np.array([1.0, 0.0])),
        ("lengths", np.array([1.0, -1.0])),
        ("lengths", np.array([1.0, 1e-300])),
        ("distances", np.array([1.0])),
        ("distances", np.array([1, 2])),
        ("more", np.zeros(2)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, array: Array) -> None:
    with pytest.raises(ValueError, match=r"contrast|must be|not finite|another kind, score or number"):
        Contrast.from_arrays({**FITTED.to_arrays(), name: array}, FITTED.settings())


@pytest.mark.parametrize("value", [True, 7.5, "7", TEXTURES, None])
def test_another_number_of_features_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="n_features must be"):
        Contrast.from_arrays(FITTED.to_arrays(), {**FITTED.settings(), "n_features": value})
