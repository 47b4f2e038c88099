"""The known channel's head: memory, regression, calibration."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lensborn.logistic import (
    CALIBRATE,
    HANDICAP,
    LEARN,
    LEAST_POPULATION,
    PENALTY,
    TAUGHT_HANDICAP,
    KnownHead,
    Memory,
    balance,
    platt,
)

D = 3
NOTHING = np.zeros((40, 1))  # of the first channel


def memory_of(seed: int = 0, apart: float = 1.5, held_out: bool = True) -> Memory:
    """Two sets of photographs and two of generated faces, normal, of different sizes."""
    rng = np.random.default_rng(seed)
    memory = Memory.empty(D)
    for name, generated, n in (("a", False, 300), ("b", False, 90), ("x", True, 120), ("y", True, 60)):
        for use in (LEARN, CALIBRATE):
            if generated and use == CALIBRATE and not held_out:
                continue
            looks = rng.normal(apart * generated, 1, (n, 1, D + 1))
            memory = memory.add(name, generated, looks[..., :D], 10 * looks[..., D], use)
    return memory


HEAD = KnownHead.learn(memory_of())


def test_the_regression_minimises_the_penalised_loss() -> None:
    memory = memory_of(held_out=False)
    head = KnownHead.learn(memory)
    rows = memory.rows(LEARN)
    x, y = memory.features[rows].astype(float), memory.positive[rows]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    weights = balance(memory.sets[rows], y)

    def loss(values: np.ndarray) -> float:
        logits = x @ values[:D] + values[D]
        return float(
            weights @ np.logaddexp(0, np.where(y, -logits, logits)) + PENALTY / 2 * values[:D] @ values[:D]
        )

    found = minimize(loss, np.zeros(D + 1), tol=1e-12).x
    alike = memory.features[rows].astype(float) @ head.weights[0] + head.bias[0]
    np.testing.assert_allclose(alike, x @ found[:D] + found[D], atol=2e-3)


def test_the_score_is_the_greater_of_two_signs() -> None:
    """Literally: log odds of what is larger, likeness or distance, in deviations of photographs kept apart."""
    features = np.random.default_rng(3).normal(1, 3, (50, D))
    rows = HEAD.memory.rows(CALIBRATE) & ~HEAD.memory.positive
    weights = balance(HEAD.memory.sets[rows], HEAD.memory.positive[rows])
    photographs = HEAD.memory.features[rows].astype(float)
    measured = []
    for sign in (lambda x: x @ HEAD.weights[0] + HEAD.bias[0], HEAD.strangeness.of):
        mean = np.average(sign(photographs), weights=weights)
        deviation = np.sqrt(np.average((sign(photographs) - mean) ** 2, weights=weights))
        measured.append((sign(features) - mean) / deviation)
    measured[1] -= HANDICAP
    np.testing.assert_allclose(HEAD.signs(features), np.stack(measured, axis=1), rtol=1e-9)
    stretch, shift = HEAD.platt
    np.testing.assert_allclose(HEAD.score(features), stretch * np.maximum(*measured) + shift, rtol=1e-9)
    assert 0.1 < (measured[1] > measured[0]).mean() < 0.9, "either counts somewhere"


def test_a_taught_generator_has_a_regression_of_its_own() -> None:
    """Those before it stay as they were, to the bit; it is measured with a handicap."""
    shown = np.random.default_rng(5).normal(3, 1, (40, 1, D))
    memory = HEAD.memory.add("new", True, shown, np.zeros((40, 1)), LEARN, taught=True)
    taught = KnownHead.learn(memory)
    np.testing.assert_array_equal(taught.weights[:1], HEAD.weights)
    np.testing.assert_array_equal(taught.scale[[0, 2, 3]], HEAD.scale)
    alone = HEAD.memory.features[HEAD.memory.rows(LEARN) & ~HEAD.memory.positive]
    only = Memory.empty(D).add("a", False, alone[:, None], np.zeros((len(alone), 1)), LEARN)
    only = only.add("new", True, shown, np.zeros((40, 1)), LEARN)
    only = only.add("a", False, alone[:9, None], np.zeros((9, 1)), CALIBRATE)
    cosine = np.corrcoef(KnownHead.learn(only).weights[0], taught.weights[1])[0, 1]
    assert cosine > 0.9  # photographs of several sets weigh otherwise
    photographs = memory.rows(CALIBRATE) & ~memory.positive
    weights = balance(memory.sets[photographs], memory.positive[photographs])
    sign = memory.features[photographs].astype(float) @ taught.weights[1] + taught.bias[1]
    mean = np.average(sign, weights=weights)
    deviation = np.sqrt(np.average((sign - mean) ** 2, weights=weights))
    np.testing.assert_allclose(taught.scale[1], (mean + TAUGHT_HANDICAP * deviation, deviation), rtol=1e-9)
    again = memory.add("new", True, shown, np.zeros((40, 1)), LEARN)
    assert again.taught.tolist() == memory.taught.tolist()  # as it was


def test_it_keeps_the_scores_that_it_gives_those_that_calibrate() -> None:
    rows = HEAD.memory.features[HEAD.memory.rows(CALIBRATE)]
    np.testing.assert_array_equal(HEAD.calibration, HEAD.score(rows))


def test_a_face_unlike_all_photographs_is_found_on_whichever_side() -> None:
    for side in (-9.0, 9.0):
        assert HEAD.p_values(HEAD.score(np.full((1, D), side)))[0] < 0.02


def test_scores_are_log_odds_of_faces_kept_apart() -> None:
    """Among faces with a score near s, a share 1 / (1 + exp(-s)) is generated, sets and classes weighing alike."""
    rows = HEAD.memory.rows(CALIBRATE)
    scores, y = HEAD.score(HEAD.memory.features)[rows], HEAD.memory.positive[rows]
    weights = balance(HEAD.memory.sets[rows], y)
    probability = 1 / (1 + np.exp(-scores))
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        here = (probability >= low) & (probability <= high)
        assert np.average(y[here], weights=weights[here]) == pytest.approx(
            np.average(probability[here], weights=weights[here]), abs=0.12
        )


def test_platt_has_the_highest_likelihood_of_his_targets() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3 == 0
    scores, weights = rng.normal(2.0 * y, 1), rng.uniform(0.5, 2, 60)
    targets = np.where(y, 21 / 22, 1 / 42)

    def loss(values: np.ndarray) -> float:
        logits = values[0] * scores + values[1]
        return float(weights @ (targets * np.logaddexp(0, -logits) + (1 - targets) * np.logaddexp(0, logits)))

    np.testing.assert_allclose(platt(scores, y, weights), minimize(loss, np.zeros(2), tol=1e-12).x, atol=1e-4)


def test_platt_stays_finite_where_scores_tell_all_apart() -> None:
    y = np.arange(40) % 2 == 0
    stretch, shift = platt(np.where(y, 3.0, -3.0), y, np.ones(40))
    assert 1 / (1 + np.exp(-(3 * stretch + shift))) == pytest.approx(21 / 22, abs=1e-3)


def test_learning_twice_gives_the_same_bits() -> None:
    again = KnownHead.learn(memory_of())
    np.testing.assert_array_equal(again.weights, HEAD.weights)
    np.testing.assert_array_equal(again.bias, HEAD.bias)


def test_a_score_does_not_depend_on_the_faces_beside_it() -> None:
    rng = np.random.default_rng(0)
    head = KnownHead.learn(Memory.empty(128).add("a", False, rng.normal(size=(40, 1, 128)), NOTHING, LEARN)
                           .add("x", True, rng.normal(1, 1, size=(40, 1, 128)), NOTHING, LEARN)
                           .add("a", False, rng.normal(size=(40, 1, 128)), NOTHING, CALIBRATE))  # fmt: skip
    features = rng.normal(size=(17, 128)).astype(np.float32)
    scores = head.score(features)
    for start, end in ((0, 1), (3, 5), (2, 17)):
        np.testing.assert_array_equal(head.score(features[start:end]), scores[start:end])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30))
def test_p_values_are_the_largest_of_the_populations(scores: list[float]) -> None:
    memory = HEAD.memory
    calibration = HEAD.score(memory.features)
    each = [
        [(1 + sum(c >= s for c in calibration[rows])) / (rows.sum() + 1) for s in scores]
        for rows in memory.populations().values()
    ]
    np.testing.assert_allclose(HEAD.p_values(scores), np.max(each, axis=0), rtol=1e-9)


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=30))
def test_both_channels_are_judged_by_the_sum_of_their_evidence(scores: list[tuple[float, float]]) -> None:
    """Literally: the greater sign, and the first channel's score in deviations of photographs; then p-values."""
    memory, (stretch, shift) = HEAD.memory, HEAD.platt
    rows = memory.rows(CALIBRATE) & ~memory.positive
    weights = balance(memory.sets[rows], memory.positive[rows])
    mean = np.average(memory.unusual[rows], weights=weights)
    deviation = np.sqrt(np.average((memory.unusual[rows] - mean) ** 2, weights=weights))

    def evidence(score: float, unusual: float) -> float:
        return (score - shift) / stretch + (unusual - mean) / deviation

    known, first = map(np.array, zip(*scores, strict=True))
    wanted = [evidence(*pair) for pair in scores]
    np.testing.assert_allclose(HEAD.fused(known, first), wanted, rtol=1e-6, atol=1e-6)
    calibration = HEAD.fused(HEAD.score(memory.features), memory.unusual)
    fused = HEAD.fused(known, first)
    each = [
        [(1 + sum(c >= s for c in calibration[rows])) / (rows.sum() + 1) for s in fused]
        for rows in memory.populations().values()  # of which each face is there once, as it is
    ]
    np.testing.assert_allclose(HEAD.fused_p(known, first), np.max(each, axis=0), rtol=1e-9)


@given(st.floats(0.005, 0.9), st.lists(st.floats(-50, 50), min_size=1, max_size=30))
def test_threshold_flags_just_what_the_p_value_flags(alpha: float, scores: list[float]) -> None:
    assert ((HEAD.p_values(scores) <= alpha) == (np.array(scores) > HEAD.threshold(alpha))).all()


def test_nothing_is_flagged_where_a_population_is_too_small() -> None:
    assert HEAD.threshold(1e-4) == math.inf


def test_photographs_of_every_population_keep_the_promise() -> None:
    """The second population looks more generated than the first; neither is flagged more often than promised."""
    rng = np.random.default_rng(1)
    memory = Memory.empty(D)
    centres = {"a": 0.0, "b": 1.0, "x": 2.0}
    for name, centre in centres.items():
        for use in (LEARN, CALIBRATE):
            looks = rng.normal(centre, 1, (400, 1, D + 1))
            memory = memory.add(name, name == "x", looks[..., :D], looks[..., D], use)
    head = KnownHead.learn(memory)
    fresh = {name: rng.normal(centre, 1, (4000, D + 1)) for name, centre in centres.items()}
    scores = {name: head.score(rows[:, :D]) for name, rows in fresh.items()}
    alone = {name: head.p_values(one) for name, one in scores.items()}
    fused = {name: head.fused_p(one, fresh[name][:, D]) for name, one in scores.items()}
    for p_values in (alone, fused):
        flagged = {name: (one <= 0.05).mean() for name, one in p_values.items()}
        assert flagged["a"] < 0.05
        assert flagged["b"] == pytest.approx(0.05, abs=0.025)
        assert flagged["x"] > flagged["b"]


def test_small_populations_join_the_largest() -> None:
    rng = np.random.default_rng(0)
    memory = Memory.empty(D)
    for name, n in (("large", 100), ("small", LEAST_POPULATION - 1), ("enough", LEAST_POPULATION)):
        memory = memory.add(name, False, rng.normal(size=(n, 2, D)), np.zeros((n, 2)), CALIBRATE)
    found = {name: int(rows.sum()) for name, rows in memory.populations().items()}
    assert found == {"large + small": 2 * (100 + LEAST_POPULATION - 1), "enough": 2 * LEAST_POPULATION}


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


def test_a_head_survives_its_arrays() -> None:
    sets = dict(zip(HEAD.memory.names, HEAD.memory.generated.tolist(), strict=True))
    again = KnownHead.from_arrays(HEAD.to_arrays(), sets)
    np.testing.assert_array_equal(again.score(np.eye(D)), HEAD.score(np.eye(D)))
    np.testing.assert_array_equal(again.p_values([0.0, 2.0]), HEAD.p_values([0.0, 2.0]))
    np.testing.assert_array_equal(again.fused_p([0.0, 2.0], [1.0, 2.0]), HEAD.fused_p([0.0, 2.0], [1.0, 2.0]))


BROKEN: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "missing": lambda arrays: arrays.pop("weights"),
    "type": lambda arrays: arrays.update(features=arrays["features"].astype(np.float32)),
    "shape": lambda arrays: arrays.update(weights=arrays["weights"][:, :2]),
    "bias": lambda arrays: arrays.update(bias=np.zeros(2)),
    "bias nan": lambda arrays: arrays.update(bias=np.array([np.nan])),
    "weights nan": lambda arrays: arrays.update(weights=np.full((1, D), np.inf)),
    "features nan": lambda arrays: arrays["features"].__setitem__(0, np.float16("nan")),
    "unusual nan": lambda arrays: arrays["unusual"].__setitem__(0, np.nan),
    "unusual of too few": lambda arrays: arrays.update(unusual=arrays["unusual"][1:]),
    "faces": lambda arrays: arrays["faces"].__setitem__(3, 40),
    "first face": lambda arrays: arrays.update(faces=arrays["faces"] + np.int32(1)),
    "centre": lambda arrays: arrays.update(centre=np.zeros((1, D))),
    "centre too short": lambda arrays: arrays.update(centre=np.zeros(2)),
    "whitening": lambda arrays: arrays.update(whitening=np.eye(D + 1)),
    "whitening nan": lambda arrays: arrays["whitening"].__setitem__((0, 0), np.nan),
    "scale": lambda arrays: arrays.update(scale=np.ones((2, 2))),
    "no deviation": lambda arrays: arrays["scale"].__setitem__((1, 1), 0.0),
    "platt": lambda arrays: arrays.update(platt=np.ones(3)),
    "platt turned round": lambda arrays: arrays.update(platt=np.array([-1.0, 0.0])),
    "weights too large": lambda arrays: arrays.update(weights=np.full((1, D), 1e308)),
    "set": lambda arrays: arrays["sets"].__setitem__(0, 4),
    "negative set": lambda arrays: arrays["sets"].__setitem__(0, -1),
    "use": lambda arrays: arrays["uses"].__setitem__(0, 7),
    "rows": lambda arrays: arrays.update(uses=arrays["uses"][1:]),
    "no photographs": lambda arrays: arrays["uses"].fill(LEARN),
    "one dimension": lambda arrays: arrays.update(features=arrays["features"].ravel()),
    "taught photographs": lambda arrays: arrays["taught"].fill(True),
    "taught sets": lambda arrays: arrays.update(taught=arrays["taught"][1:]),
    "a regression of nothing": lambda arrays: arrays.update(
        weights=np.zeros((2, D)), bias=np.zeros(2), scale=np.ones((4, 2))
    ),
    "no regression of its own": lambda arrays: arrays["taught"].__setitem__(-1, True),
    "a number in the place of features": lambda arrays: arrays.update(features=np.float16(1)),
    "no regression": lambda arrays: arrays.update(weights=np.zeros((0, D)), bias=np.zeros(0)),
    "fewer scores": lambda arrays: arrays.update(calibration=arrays["calibration"][1:]),
    "other scores": lambda arrays: arrays["calibration"].__iadd__(0.1),
    "no score": lambda arrays: arrays["calibration"].__setitem__(0, np.nan),
}


@pytest.mark.parametrize("what", BROKEN)
def test_malformed_arrays_are_refused(what: str) -> None:
    arrays = {name: array.copy() for name, array in HEAD.to_arrays().items()}
    BROKEN[what](arrays)
    sets = dict(zip(HEAD.memory.names, HEAD.memory.generated.tolist(), strict=True))
    with pytest.raises(ValueError):
        KnownHead.from_arrays(arrays, sets)


def test_a_class_that_is_missing_is_named() -> None:
    some = np.zeros((3, 1, D)), np.zeros((3, 1)), LEARN
    photos = Memory.empty(D).add("a", False, *some)
    with pytest.raises(ValueError, match="no generated faces"):
        KnownHead.learn(photos)
    with pytest.raises(ValueError, match="no photographs"):
        KnownHead.learn(Memory.empty(D).add("x", True, *some))
    with pytest.raises(ValueError, match="photographs to calibrate"):
        KnownHead.learn(photos.add("x", True, *some))


def test_a_set_cannot_be_of_both_classes() -> None:
    with pytest.raises(ValueError, match="other class"):
        memory_of().add("a", True, np.zeros((1, 1, D)), [[0]], LEARN)


def test_a_head_that_is_the_wrong_way_round_is_refused() -> None:
    memory = memory_of(held_out=False).add(
        "x", True, np.random.default_rng(0).normal(-1, 0.3, (50, 1, D)), np.zeros((50, 1)), CALIBRATE
    )
    with pytest.raises(ValueError, match="kept apart"):
        KnownHead.learn(memory)


def test_faces_as_they_are_keep_the_promise_where_handed_on_they_look_less_strange() -> None:
    """However the channels depend on each other."""
    rng = np.random.default_rng(2)
    for dependence in (1.0, 0.0, -1.0):

        def looks(n: int, centre: float, depends: float = dependence) -> tuple[np.ndarray, np.ndarray]:
            features = rng.normal(centre, 1, (n, 3, D))
            first = depends * features.sum(axis=2) + rng.normal(size=(n, 3)) - np.array([0.0, 1.5, 1.5])
            return features, first

        memory = Memory.empty(D)
        for use in (LEARN, CALIBRATE):
            memory = memory.add("a", False, *looks(600, 0.0), use).add("x", True, *looks(200, 2.0), use)
        head = KnownHead.learn(memory)
        features, first = looks(4000, 0.0)
        fused_p = head.fused_p(head.score(features[:, 0]), first[:, 0])
        assert 0.03 < (fused_p <= 0.05).mean() < 0.07, dependence
        handed_on = head.fused_p(head.score(features[:, 1]), first[:, 1])
        assert (handed_on <= 0.05).mean() < 0.05, dependence
