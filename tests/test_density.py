import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from lensborn.density import RIDGE, Covariance, Mixture, SingularError, fit_mixture

Array = NDArray[np.float64]
COVARIANCES: tuple[Covariance, ...] = ("full", "tied", "diag")


def clusters(n: int = 600, d: int = 5, k: int = 3, seed: int = 0, offset: float = 20.0) -> Array:
    """Correlated points around k centres, away from the origin."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) + 2 * np.eye(d)
    centres = rng.normal(size=(k, d)) * 8 + offset
    return centres[np.arange(n) % k] + rng.normal(size=(n, d)) @ mix


def covariances_of(mixture: Mixture) -> Array:
    """(K, d, d), by inverting what the mixture keeps."""
    k = len(mixture.means)
    factors = mixture.precisions.astype(np.float64)
    if mixture.covariance == "diag":
        return np.array([np.diag(1 / p**2) for p in factors])
    if mixture.covariance == "tied":
        return np.array([np.linalg.inv(factors @ factors.T)] * k)
    return np.array([np.linalg.inv(p @ p.T) for p in factors])


def literal_log_likelihood(mixture: Mixture, features: Array) -> Array:
    """The density as the textbook writes it, one point and one component at a time."""
    covariances = covariances_of(mixture)
    values = []
    for x in features:
        y = x / np.linalg.norm(x) if mixture.l2_normalise else x
        y = y - mixture.offset
        if mixture.projection is not None:
            y = mixture.projection.T @ y
        total = 0.0
        for weight, mean, covariance in zip(mixture.weights, mixture.means, covariances, strict=True):
            square = (y - mean) @ np.linalg.inv(covariance) @ (y - mean)
            volume = math.sqrt((2 * math.pi) ** len(y) * np.linalg.det(covariance))
            total += weight * math.exp(-square / 2) / volume
        values.append(math.log(total))
    return np.array(values)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("n_dims", [None, 3])
@pytest.mark.parametrize("l2", [False, True])
def test_scoring_equals_the_literal_density(covariance: Covariance, n_dims: int | None, l2: bool) -> None:
    x = clusters()
    mixture = fit_mixture(x, n_components=3, covariance=covariance, n_dims=n_dims, l2_normalise=l2)
    np.testing.assert_allclose(
        mixture.log_likelihood(x[:40]), literal_log_likelihood(mixture, x[:40]), rtol=1e-6
    )
    assert (mixture.score(x) == -mixture.log_likelihood(x)).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_scoring_equals_scikit_learn(covariance: Covariance) -> None:
    x = clusters()
    mixture = fit_mixture(x, n_components=3, covariance=covariance)
    theirs = GaussianMixture(3, covariance_type=covariance)
    theirs.weights_, theirs.means_ = mixture.weights, mixture.means
    theirs.precisions_cholesky_ = mixture.precisions.astype(np.float64)
    far = np.concatenate([x, x + 100, np.zeros((1, 5))])
    np.testing.assert_allclose(
        mixture.log_likelihood(far), theirs.score_samples(far - mixture.offset), rtol=1e-6
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_fit_is_that_of_scikit_learn(covariance: Covariance) -> None:
    x = clusters()
    ridge = RIDGE * x.var(axis=0).mean()
    theirs = GaussianMixture(3, covariance_type=covariance, reg_covar=ridge, max_iter=200, random_state=0)
    theirs.fit(x - x.mean(axis=0))
    ours = fit_mixture(x, n_components=3, covariance=covariance)
    np.testing.assert_allclose(ours.log_likelihood(x), theirs.score_samples(x - x.mean(axis=0)), rtol=1e-4)


def test_density_integrates_to_one() -> None:
    mixture = fit_mixture(clusters(d=1, k=2, offset=0), n_components=2)
    grid = np.linspace(-100, 100, 200_001)[:, None]
    assert np.exp(mixture.log_likelihood(grid)).sum() * (grid[1, 0] - grid[0, 0]) == pytest.approx(
        1, abs=1e-5
    )


def test_far_points_are_more_anomalous_and_stay_finite() -> None:
    x = clusters()
    mixture = fit_mixture(x, n_components=3)
    direction = np.ones(5)
    scores = mixture.score(x.mean(axis=0) + np.array([30, 1e3, 1e10, 1e38])[:, None] * direction)
    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()
    assert scores[0] > mixture.score(x).max()


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("s", [0.1, 0.5, 1.0])
def test_shrinkage_equals_its_formula(covariance: Covariance, s: float) -> None:
    x = clusters(k=1)
    sample = np.cov(x.T, bias=True)
    if covariance == "diag":
        sample = np.diag(np.diag(sample))
    expected = (1 - s) * sample + s * np.trace(sample) / 5 * np.eye(5)
    mixture = fit_mixture(x, n_components=1, covariance=covariance, shrinkage=s)
    np.testing.assert_allclose(covariances_of(mixture)[0], expected, rtol=1e-4, atol=1e-4 * sample.max())


def test_tied_shrinkage_equals_its_formula() -> None:
    x = clusters(k=1)
    sample = np.cov(x.T, bias=True)
    mixture = fit_mixture(x, n_components=1, covariance="tied", shrinkage=0.3)
    expected = 0.7 * sample + 0.3 * np.trace(sample) / 5 * np.eye(5)
    np.testing.assert_allclose(covariances_of(mixture)[0], expected, rtol=1e-4, atol=1e-4 * sample.max())


def test_projection_spans_the_axes_of_greatest_variance() -> None:
    x = np.random.default_rng(0).normal(size=(500, 6)) * [1, 9, 1, 7, 1, 1]
    mixture = fit_mixture(x, n_components=1, n_dims=2)
    assert mixture.projection is not None
    np.testing.assert_allclose(mixture.projection.T @ mixture.projection, np.eye(2), atol=1e-6)
    assert np.abs(mixture.projection[[1, 3]]).max(axis=0).min() > 0.99


def test_off_the_subspace_nothing_is_seen() -> None:
    """The documented choice: residual energy is no part of the likelihood."""
    x = clusters()
    mixture = fit_mixture(x, n_components=2, n_dims=2)
    assert mixture.projection is not None
    normal = np.linalg.svd(mixture.projection.astype(np.float64).T)[2][-1]
    np.testing.assert_allclose(mixture.score(x[:5] + 50 * normal), mixture.score(x[:5]), atol=1e-3)


def test_l2_normalised_scores_ignore_length() -> None:
    x = clusters()
    mixture = fit_mixture(x, n_components=2, l2_normalise=True)
    np.testing.assert_allclose(mixture.score(7 * x), mixture.score(x), rtol=1e-9)
    assert np.isfinite(mixture.score(np.zeros((1, 5)))).all()


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (60, {"n_components": 8}),
        (12, {"n_components": 1}),
        (13, {"n_components": 2, "covariance": "tied"}),
    ],
)
def test_too_few_points_name_the_remedies(n: int, options: dict[str, object]) -> None:
    x = clusters(n=n, d=12)
    with pytest.raises(SingularError, match=r"n_dims.*shrinkage.*fewer components"):
        fit_mixture(x, **options)  # type: ignore[arg-type]
    fit_mixture(x, **{**options, "shrinkage": 0.1})  # type: ignore[arg-type]
    fit_mixture(x, n_components=1, n_dims=2)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_dead_dimension_is_singular(covariance: Covariance) -> None:
    x = clusters()
    x[:, 2] = 4
    with pytest.raises(SingularError, match="n_dims"):
        fit_mixture(x, n_components=2, covariance=covariance)
    with pytest.raises(SingularError, match="all features are equal"):
        fit_mixture(np.ones((50, 4)), n_components=1)


def test_components_are_chosen_on_rows_held_out() -> None:
    mixture = fit_mixture(clusters(n=900, d=2, k=3), n_components=[1, 3, 12])
    table = {row["n_components"]: row["log_likelihood"] for row in mixture.settings()["held_out"]}
    assert list(table) == [1, 3, 12]
    assert mixture.means.shape[0] == 3 == max(table, key=lambda k: table[k])
    assert mixture.settings()["n_fitted"] == 900


def test_no_group_stands_on_both_sides() -> None:
    """Tight bursts: with rows split freely a component a burst looks best, split by burst it does not."""
    rng = np.random.default_rng(0)
    burst = np.repeat(np.arange(21), 30)
    x = rng.normal(size=(21, 2))[burst] + 0.01 * rng.normal(size=(630, 2))
    names = np.array([f"source-{b}" for b in burst])
    assert fit_mixture(x, n_components=[1, 21]).means.shape[0] == 21
    assert fit_mixture(x, n_components=[1, 21], groups=names).means.shape[0] == 1


def test_candidates_that_cannot_be_fitted_are_passed_over() -> None:
    mixture = fit_mixture(clusters(n=120, d=10), n_components=[1, 40])
    assert mixture.means.shape[0] == 1
    assert mixture.settings()["held_out"][1] == {"n_components": 40, "log_likelihood": None}
    with pytest.raises(SingularError, match="shrinkage"):
        fit_mixture(clusters(n=30, d=10), n_components=[10, 12])


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("n_dims", [None, 2])
def test_arrays_and_settings_give_the_same_mixture(covariance: Covariance, n_dims: int | None) -> None:
    x = clusters()
    mixture = fit_mixture(x, n_components=[2, 3], covariance=covariance, n_dims=n_dims, l2_normalise=True)
    stored = json.loads(json.dumps(mixture.settings()))
    again = Mixture.from_arrays(mixture.to_arrays(), stored)
    assert again.settings() == stored
    assert (again.score(x) == mixture.score(x)).all()


def test_same_seed_same_mixture() -> None:
    first, second = (fit_mixture(clusters(), n_components=4, seed=3) for _ in range(2))
    assert all(
        (a == b).all() for a, b in zip(first.to_arrays().values(), second.to_arrays().values(), strict=True)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    x = clusters()
    mixture = fit_mixture(x, n_components=1)
    x[3, 1] = value
    for use in (mixture.log_likelihood, fit_mixture):
        with pytest.raises(ValueError, match=r"1 of 600 features hold NaN or infinity: leave"):
            use(x)


@pytest.mark.parametrize("shape", [(5,), (2, 4), (2, 6), (1, 2, 5), ()])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    mixture = fit_mixture(clusters(), n_components=1)
    with pytest.raises(ValueError, match=r"shape \(N, 5\).*use"):
        mixture.score(np.zeros(shape))
    assert mixture.score(np.zeros((0, 5))).shape == (0,)


@pytest.mark.parametrize(
    "options",
    [
        {"n_components": 0},
        {"n_components": []},
        {"n_components": 601},
        {"covariance": "spherical"},
        {"n_dims": 0},
        {"n_dims": 6},
        {"shrinkage": -0.1},
        {"shrinkage": float("nan")},
        {"n_components": [1, 2], "groups": np.zeros(600)},
        {"n_components": [1, 2], "groups": np.arange(9)},
    ],
)
def test_settings_that_cannot_be_used_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must|too few|needs"):
        fit_mixture(clusters(), **options)  # type: ignore[arg-type]


NUMBERS = st.one_of(st.floats(width=32), st.integers(-3, 3).map(float))
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["weights", "means", "offset", "precisions", "projection"]),
    SHAPES,
    NUMBERS,
    st.sampled_from(["covariance", "l2_normalise", "n_dims", "other"]),
    st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.text(max_size=4), st.just("tied"), st.just([])),
)
def test_arrays_of_strangers_load_or_raise_value_error(
    name: str, shape: tuple[int, ...], number: float, key: str, value: object
) -> None:
    arrays, given_settings = STORED
    changed = {**arrays, name: np.full(shape, number)}
    for parts in ((changed, given_settings), (arrays, {**given_settings, key: value})):
        try:
            mixture = Mixture.from_arrays(*parts)
        except ValueError:
            continue
        assert mixture.score(np.zeros((2, 3))).shape == (2,)


_MIXTURE = fit_mixture(clusters(d=3), n_components=2, n_dims=2)
STORED = (_MIXTURE.to_arrays(), _MIXTURE.settings())


def test_scoring_imports_neither_scikit_learn_nor_scipy() -> None:
    code = (
        "import sys, lensborn.density, lensborn.calibration, lensborn.bundle;"
        "print([m for m in ('sklearn', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
