"""What speaks for a generated face, and how it is measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from lensborn.normal_scores import KNOTS, normal_levels, normal_scores
from lensborn.signs import PENALTY, Regression, Scale, balance

D = 3


def test_the_regression_minimises_the_penalised_loss() -> None:
    rng = np.random.default_rng(0)
    y = rng.random(300) < 0.3
    x, weights = rng.normal(y[:, None], [1, 3, 10], (300, D)), rng.uniform(0.5, 2, 300)
    z = (x - x.mean(axis=0)) / x.std(axis=0)

    def loss(values: np.ndarray) -> float:
        logits = z @ values[:D] + values[D]
        return float(
            weights @ np.logaddexp(0, np.where(y, -logits, logits)) + PENALTY / 2 * values[:D] @ values[:D]
        )

    found = minimize(loss, np.zeros(D + 1), tol=1e-12).x
    model = Regression.fit(x, y, weights, PENALTY)
    np.testing.assert_allclose(model.of(x), z @ found[:D] + found[D], atol=2e-3)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60))
def test_sets_and_classes_weigh_the_same(sets: list[int]) -> None:
    numbers = np.array([*sets, 0, 1], dtype=np.int32)
    positive = numbers % 2 == 1
    weights = balance(numbers, positive)
    assert weights.sum() == pytest.approx(len(numbers))
    assert weights[positive].sum() == pytest.approx(weights[~positive].sum())
    for kind in (False, True):
        each = [weights[numbers == name].sum() for name in set(numbers[positive == kind].tolist())]
        np.testing.assert_allclose(each, each[0])


def test_normal_scores_are_those_of_ranks() -> None:
    """Of numbers of any distribution: the normal quantile of the share that is smaller."""
    numbers = np.exp(np.random.default_rng(0).normal(size=2000))
    levels = normal_levels(numbers, np.ones(2000))
    ranks = (np.argsort(np.argsort(numbers)) + 0.5) / 2000
    inner = (ranks > 0.01) & (ranks < 0.99)
    np.testing.assert_allclose(normal_scores(numbers, levels)[inner], norm.ppf(ranks)[inner], atol=0.06)


def test_a_number_of_weight_two_counts_as_two() -> None:
    numbers = np.random.default_rng(0).normal(size=100)
    twice = normal_levels(np.concatenate([numbers, numbers[:50]]), np.ones(150))
    weights = np.where(np.arange(100) < 50, 2.0, 1.0)
    np.testing.assert_allclose(normal_levels(numbers, weights)[4:-4], twice[4:-4], atol=0.03)


@given(
    st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20), st.lists(st.floats(-1e13, 1e13), min_size=2)
)
def test_normal_scores_rise(photographs: list[float], values: list[float]) -> None:
    """Beyond all photographs, too, and where all of them are the same."""
    levels = normal_levels(photographs, np.ones(len(photographs)))
    assert (np.diff(levels) > 0).all()
    ordered = np.unique(values)
    found = normal_scores(ordered, levels)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose(normal_scores(levels, levels), KNOTS, atol=1e-6)


def test_beyond_the_last_level_they_rise_as_they_did_before() -> None:
    levels = normal_levels(np.random.default_rng(0).normal(5, 2, 4000), np.ones(4000))
    far = normal_scores(
        [levels[-1] + (levels[-1] - levels[12]), levels[0] - (levels[12] - levels[0])], levels
    )
    np.testing.assert_allclose(far, [6, -6], rtol=1e-6)


def test_a_blank_scale_leaves_numbers_as_they_are() -> None:
    values = np.linspace(-9, 9, 19)
    np.testing.assert_allclose(Scale.blank().first(values), values)


def test_a_scale_without_levels_for_what_was_taught_is_refused() -> None:
    blank = Scale.blank()
    with pytest.raises(ValueError, match="malformed"):
        Scale(blank.levels, np.ones(1, bool), blank.taught)
