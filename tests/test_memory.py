"""The faces that a known channel remembers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lensborn.memory import CALIBRATE, LEARN, LEAST_POPULATION, REACH, Memory

D = 3
EMPTY = Memory.empty(np.random.default_rng(0).normal(size=(500, D)))


@given(arrays(np.float64, (4, 2, D), elements=st.floats(-1e6, 1e6)))
def test_features_are_remembered_to_half_a_step(features: np.ndarray) -> None:
    """What lies too far from the mean is remembered as the farthest."""
    memory = EMPTY.add("a", False, features, np.zeros((4, 2)), LEARN)
    lowest, step = memory.grid
    nearest = np.clip(features.reshape(-1, D), lowest, lowest + 255 * step)
    found = memory.values(np.arange(8))
    assert (np.abs(found - nearest) <= step / 2 * (1 + 1e-9)).all()
    np.testing.assert_array_equal(memory.values(np.arange(8) == 3, slice(1, 2)), found[3:4, 1:2])


def test_a_step_is_a_small_part_of_a_deviation() -> None:
    rows = np.random.default_rng(0).normal(5, [1, 10, 0], (500, D))
    lowest, step = Memory.empty(rows).grid
    np.testing.assert_allclose(step[:2], rows.std(axis=0)[:2] * 2 * REACH / 255)
    np.testing.assert_allclose(lowest + 127.5 * step, rows.mean(axis=0))
    assert step[2] > 0, "a feature that never varies, too"


def test_what_is_remembered_again_stays_the_same() -> None:
    memory = EMPTY.add("a", False, np.random.default_rng(1).normal(size=(9, 1, D)), np.zeros((9, 1)), LEARN)
    again = EMPTY.add("a", False, memory.values(np.arange(9))[:, None], np.zeros((9, 1)), LEARN)
    np.testing.assert_array_equal(again.features, memory.features)


def test_faces_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        EMPTY.add("a", False, np.zeros((1, 1, D + 1)), [[0]], LEARN)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        EMPTY.add("a", False, np.full((1, 1, D), bad), [[0]], LEARN)


def test_small_populations_join_the_largest() -> None:
    rng = np.random.default_rng(0)
    memory = EMPTY
    for name, n in (("large", 100), ("small", LEAST_POPULATION - 1), ("enough", LEAST_POPULATION)):
        memory = memory.add(name, False, rng.normal(size=(n, 2, D)), np.zeros((n, 2)), CALIBRATE)
    found = {name: len(rows) for name, rows in memory.populations().items()}
    assert found == {"large + small": 2 * (100 + LEAST_POPULATION - 1), "enough": 2 * LEAST_POPULATION}


def test_a_set_cannot_be_of_both_classes() -> None:
    with pytest.raises(ValueError, match="other class"):
        EMPTY.add("a", False, np.zeros((1, 1, D)), [[0]], LEARN).add(
            "a", True, np.zeros((1, 1, D)), [[0]], LEARN
        )


def test_a_set_stays_what_it_is() -> None:
    """Shown or taught, whatever is said later."""
    one = np.zeros((1, 1, D)), [[0]]
    memory = EMPTY.add("shown", True, *one, LEARN).add("taught", True, *one, LEARN, taught=True)
    again = memory.add("shown", True, *one, LEARN, taught=True).add("taught", True, *one, CALIBRATE)
    assert again.taught.tolist() == [False, True]
    assert again.shown.tolist() == [True, False, True, False]
    assert [rows.tolist() for rows in again.lessons()] == [[False, True, False, True]]
