import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lensborn.calibration import Conformal, FaceConformal, clopper_pearson, minimum_scores

SCORES = st.lists(
    st.one_of(st.integers(-5, 5).map(float), st.floats(-1e9, 1e9)), min_size=1, max_size=60
)  # whole numbers, so that ties are common
ALPHAS = st.one_of(
    st.floats(1e-3, 0.999), st.builds(lambda k, n: k / (k + n), st.integers(1, 60), st.integers(1, 60))
)


@given(SCORES, SCORES)
def test_p_values_equal_their_definition(calibration: list[float], scores: list[float]) -> None:
    literal = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert Conformal.fit(calibration).p_values(scores).tolist() == literal


@given(SCORES, SCORES)
def test_a_higher_score_never_has_a_higher_p_value(calibration: list[float], scores: list[float]) -> None:
    p = Conformal.fit(calibration).p_values(sorted(scores))
    assert (np.diff(p) <= 0).all()
    assert (p > 0).all()
    assert (p <= 1).all()


@given(SCORES, SCORES, ALPHAS)
def test_threshold_flags_just_what_the_p_value_flags(
    calibration: list[float], scores: list[float], alpha: float
) -> None:
    conformal = Conformal.fit(calibration)
    threshold = conformal.threshold(alpha)
    tried = np.array([*scores, *calibration, *np.nextafter(calibration, np.inf)])
    assert ((conformal.p_values(tried) <= alpha) == (tried > threshold)).all()


@pytest.mark.parametrize(("n", "k"), [(99, 29), (99, 7), (48, 1), (9, 3)])
def test_threshold_is_not_led_astray_by_rounding(n: int, k: int) -> None:
    conformal = Conformal.fit(np.arange(n))
    alpha = k / (n + 1)  # .29 * 100 is less than 29 in floating point
    assert (conformal.p_values(np.arange(n)) <= alpha).sum() == k - 1
    assert conformal.threshold(alpha) == n - k


def test_infinite_scores_have_p_values() -> None:
    conformal = Conformal.fit([1, 2, 3])
    assert conformal.p_values([np.inf, -np.inf]).tolist() == [0.25, 1.0]


@given(ALPHAS)
def test_minimum_scores_is_the_least_that_can_flag(alpha: float) -> None:
    n = minimum_scores(alpha)
    assert Conformal.fit(np.arange(n), alpha=alpha).threshold(alpha) < math.inf
    assume(n > 1)
    assert Conformal.fit(np.arange(n - 1)).threshold(alpha) == math.inf
    with pytest.raises(ValueError, match=f"give {n} or more"):
        Conformal.fit(np.arange(n - 1), alpha=alpha)


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 19), (0.01, 99), (0.1, 9), (1 / 49, 48), (0.9, 1)])
def test_minimum_scores_by_hand(alpha: float, n: int) -> None:
    assert minimum_scores(alpha) == n


def draws(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    normal = rng.normal(size=shape)
    if kind == "heavy tails":
        return np.asarray(rng.standard_cauchy(size=shape))
    if kind == "ties":
        return np.round(normal)
    if kind == "exchangeable, dependent":  # one shared level a row: not independent, still exchangeable
        return normal + 10 * rng.normal(size=(shape[0], 1))
    return normal


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "ties", "exchangeable, dependent"])
@pytest.mark.parametrize("n", [10, 59, 200])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_false_alarms_are_at_most_alpha(kind: str, n: int, alpha: float) -> None:
    """Over 4,000 draws of calibration set and photograph, the rate's interval must reach down to alpha."""
    rng = np.random.default_rng(n)
    trials = draws(kind, (4000, n + 1), rng)
    flagged = sum(Conformal.fit(row[:-1]).p_values(row[-1:])[0] <= alpha for row in trials)
    low, high = clopper_pearson(int(flagged), len(trials), level=0.9999)
    assert low <= alpha
    if kind != "ties":  # then the rate is known: floor(alpha (n + 1)) / (n + 1)
        assert low <= math.floor(alpha * (n + 1) + 1e-9) / (n + 1) <= high


def test_rates_given_one_calibration_set_are_beta() -> None:
    """What the head of the module says about a single calibration set."""
    rng = np.random.default_rng(1)
    n, alpha = 99, 0.05
    rates = [1 - Conformal.fit(rng.uniform(size=n)).threshold(alpha) for _ in range(4000)]
    assert np.mean(rates) == pytest.approx(5 / 100, abs=0.002)
    assert np.var(rates) == pytest.approx(5 * 95 / (100**2 * 101), rel=0.1)


@pytest.mark.parametrize("scores", [[], [[1.0, 2.0]], 3.0, [1.0, np.nan], [1.0, np.inf]])
def test_calibration_scores_that_cannot_be_used_are_refused(scores: object) -> None:
    with pytest.raises(ValueError, match="calibration scores must"):
        Conformal.fit(scores)  # type: ignore[arg-type]


def test_unsorted_scores_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Conformal\.fit"):
        Conformal(np.array([2.0, 1.0]))
    with pytest.raises(ValueError, match="NaN"):
        Conformal.fit([1.0, 2.0]).p_values([0.0, np.nan])


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must"):
        Conformal.fit([1.0]).threshold(alpha)
    with pytest.raises(ValueError, match="alpha must"):
        minimum_scores(alpha)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 700)])
def test_clopper_pearson_bounds_have_the_tails_they_promise(k: int, n: int) -> None:
    low, high = clopper_pearson(k, n)

    def at_most(j: int, p: float) -> float:
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(j + 1))

    assert (low == 0) if k == 0 else 1 - at_most(k - 1, low) == pytest.approx(0.025, abs=1e-9)
    assert (high == 1) if k == n else at_most(k, high) == pytest.approx(0.025, abs=1e-9)


@pytest.mark.parametrize("arguments", [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 1.0)])
def test_clopper_pearson_refuses_nonsense(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="needs 0 <= k <= n"):
        clopper_pearson(*arguments)


# --- faces that were delivered several times ------------------------------------------------------------

ROWS = st.lists(st.tuples(st.integers(0, 9), st.integers(-5, 5).map(float)), min_size=1, max_size=60)


@given(ROWS, SCORES)
def test_p_values_by_face_equal_their_definition(rows: list[tuple[int, float]], scores: list[float]) -> None:
    each: dict[int, list[float]] = {}
    for face, score in rows:
        each.setdefault(face, []).append(score)
    literal = [
        (1 + sum(sum(c >= s for c in mine) / len(mine) for mine in each.values())) / (len(each) + 1)
        for s in scores
    ]
    faces, values = zip(*rows, strict=True)
    found = FaceConformal.fit(values, faces)
    np.testing.assert_allclose(found.p_values(scores), literal, rtol=1e-9)
    assert found.smallest_p == 1 / (len(each) + 1)


@given(SCORES)
def test_faces_of_one_score_are_calibrated_as_scores_are(calibration: list[float]) -> None:
    found = FaceConformal.fit(calibration, range(len(calibration)))
    np.testing.assert_allclose(
        found.p_values(calibration), Conformal.fit(calibration).p_values(calibration), rtol=1e-9
    )


@given(ROWS, SCORES, ALPHAS)
def test_threshold_by_face_flags_just_what_the_p_value_flags(
    rows: list[tuple[int, float]], scores: list[float], alpha: float
) -> None:
    faces, values = zip(*rows, strict=True)
    found = FaceConformal.fit(values, faces)
    tried = np.array([*scores, *values, *np.nextafter(values, np.inf)])
    assert ((found.p_values(tried) <= alpha) == (tried > found.threshold(alpha))).all()


def test_repeating_faces_does_not_sharpen_a_p_value() -> None:
    """Twenty photographs, each counted thrice, promise no more than twenty do."""
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(3000):
        scores = np.repeat(rng.normal(size=20), 3)
        flagged.append(FaceConformal.fit(scores, np.repeat(np.arange(20), 3)).p_values(rng.normal()) <= 0.05)
    assert np.mean(flagged) == pytest.approx(1 / 21, abs=0.012)


@pytest.mark.parametrize("scores", [[], [math.nan], [math.inf]])
def test_faces_without_finite_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        FaceConformal.fit(scores, range(len(scores)))
