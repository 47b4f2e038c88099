"""The known channel's head: scores, calibration, arrays."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from lensborn.known_head import MARGIN, KnownHead, platt
from lensborn.memory import CALIBRATE, LEARN, Memory
from lensborn.normal_scores import normal_levels, normal_scores
from lensborn.signs import HANDICAP, TAUGHT_HANDICAP, Floats, balance
from lensborn.signs import measured as measured_signs

D, F = 3, 2  # features of the known channel, and of the first
LIKE = np.random.default_rng(9).normal(size=(500, D + F))
NOTHING = np.zeros((40, 1))  # of the first channel's scores


def memory_of(seed: int = 0, apart: float = 1.5, held_out: bool = True) -> Memory:
    """Two sets of photographs and two of generated faces, normal, of different sizes."""
    rng = np.random.default_rng(seed)
    memory = Memory.empty(LIKE)
    for name, generated, n in (("a", False, 300), ("b", False, 90), ("x", True, 120), ("y", True, 60)):
        for use in (LEARN, CALIBRATE):
            if generated and use == CALIBRATE and not held_out:
                continue
            looks = rng.normal(apart * generated, 1, (n, 1, D + F + 1))
            memory = memory.add(name, generated, looks[..., : D + F], 10 * looks[..., -1], use)
    return memory


def learn(memory: Memory) -> KnownHead:
    return KnownHead.learn(memory, D)


def taught_memory() -> Memory:
    """With a generator that is kin of those shown, and one that is not."""
    memory, rng = memory_of(), np.random.default_rng(5)
    for name, centre in CENTRES.items():
        looks = rng.normal(2 * np.array(centre), 1, (40, 1, D + F))
        memory = memory.add(name, True, looks, NOTHING, LEARN, taught=True)
    return memory


CENTRES = {"kin": (1, 1, 1, 1, 0), "stranger": (-1, -1, -1, 0, 1)}
HEAD = learn(memory_of())
TAUGHT_HEAD = learn(taught_memory())
EVERY = np.arange(len(HEAD.memory.sets))


def photographs_kept_apart(memory: Memory) -> tuple[Floats, Floats]:
    """Their features, and how they weigh."""
    rows = memory.rows(CALIBRATE) & ~memory.positive
    return memory.values(rows), balance(memory.sets[rows], memory.positive[rows])


def measured(sign: Callable[[Floats], Floats], features: Floats, memory: Memory) -> Floats:
    """A sign by its normal scores among photographs kept apart."""
    photographs, weights = photographs_kept_apart(memory)
    return normal_scores(sign(features), normal_levels(sign(photographs), weights))


def two(features: Floats) -> Floats:
    """The greater of both signs of HEAD, literally."""
    alike, strange = HEAD.signs.alike, HEAD.signs.strangeness
    return np.maximum(
        measured(lambda x: x[:, :D] @ alike.weights + alike.bias, features, HEAD.memory),
        measured(lambda x: strange.of(x[:, :D]), features, HEAD.memory) - HANDICAP,
    )


def test_the_score_is_the_greater_of_two_signs() -> None:
    """Literally: log odds of what is larger, likeness or distance, in normal scores of photographs kept apart."""
    features = np.random.default_rng(3).normal(1, 3, (50, D + F))
    stretch, shift = HEAD.platt
    np.testing.assert_allclose(HEAD.score(features), stretch * two(features) + shift, rtol=1e-9)
    both = measured_signs(HEAD.signs.of(features), HEAD.scale.levels)
    assert 0.1 < (both[:, 1] > both[:, 0]).mean() < 0.9, "either counts somewhere"


def test_without_taught_generators_the_first_channel_s_features_do_not_matter() -> None:
    features = np.random.default_rng(3).normal(1, 3, (50, D + F))
    np.testing.assert_array_equal(HEAD.score(features), HEAD.score(features[:, :D]))


@pytest.mark.parametrize(("kin", "direction"), [(True, (1, 1, 1, 1, 0)), (False, (-1, -1, -1, 1, 0))])
def test_a_taught_generator_has_a_regression_of_its_own(kin: bool, direction: tuple[int, ...]) -> None:
    """It sees the first channel's features, too; what was there before it stays as it was, to the bit. Where it is
    kin, what it says adds to what was known; else it is one more sign, with a handicap."""
    shown = np.random.default_rng(5).normal(2 * np.array(direction), 1, (40, 1, D + F))
    memory = HEAD.memory.add("new", True, shown, NOTHING, LEARN, taught=True)
    taught = learn(memory)
    np.testing.assert_array_equal(taught.signs.alike.weights, HEAD.signs.alike.weights)
    np.testing.assert_array_equal(taught.scale.levels, HEAD.scale.levels)
    assert taught.scale.kin.tolist() == [kin]
    (own,) = taught.signs.taught
    assert np.corrcoef(own.weights, direction)[0, 1] > 0.9

    def says(features: Floats) -> Floats:
        return measured(lambda x: x @ own.weights + own.bias, features, memory)

    features = np.random.default_rng(3).normal(1, 3, (50, D + F))
    if kin:
        wanted = measured(lambda x: says(x) + two(x), features, memory)
    else:
        wanted = np.maximum(two(features), says(features) - TAUGHT_HANDICAP)
    stretch, shift = taught.platt
    np.testing.assert_allclose(taught.score(features), stretch * wanted + shift, rtol=1e-6, atol=1e-6)
    new = np.random.default_rng(6).normal(2 * np.array(direction), 1, (200, D + F))
    found, before = ((head.p_values(head.score(new)) <= 0.05).mean() for head in (taught, HEAD))
    assert found > max(before, 0.6)


def test_what_is_kin_and_what_is_not_can_be_taught_together() -> None:
    assert TAUGHT_HEAD.scale.kin.tolist() == [True, False]
    rng = np.random.default_rng(7)
    for centre in CENTRES.values():
        scores = TAUGHT_HEAD.score(rng.normal(2 * np.array(centre), 1, (200, D + F)))
        assert (TAUGHT_HEAD.p_values(scores) <= 0.05).mean() > 0.6


def test_it_keeps_the_scores_that_it_gives_those_that_calibrate() -> None:
    rows = HEAD.memory.values(HEAD.memory.rows(CALIBRATE))
    np.testing.assert_array_equal(HEAD.calibration, HEAD.score(rows))


def test_a_face_unlike_all_photographs_is_found_on_whichever_side() -> None:
    for side in (-9.0, 9.0):
        assert HEAD.p_values(HEAD.score(np.full((1, D + F), side)))[0] < 0.02


def test_scores_are_log_odds_of_faces_kept_apart() -> None:
    """Among faces with a score near s, a share 1 / (1 + exp(-s)) is generated, sets and classes weighing alike."""
    rows = HEAD.memory.rows(CALIBRATE)
    scores, y = HEAD.score(HEAD.memory.values(EVERY))[rows], HEAD.memory.positive[rows]
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
    again = learn(memory_of())
    for name, array in HEAD.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], array)


def test_a_score_does_not_depend_on_the_faces_beside_it() -> None:
    rng = np.random.default_rng(0)
    memory = Memory.empty(rng.normal(size=(40, 128)))
    for name, centre, use in (("a", 0, LEARN), ("x", 1, LEARN), ("t", -1, LEARN), ("a", 0, CALIBRATE)):
        looks = rng.normal(centre, 1, size=(40, 1, 128))
        memory = memory.add(name, name != "a", looks, NOTHING, use, taught=name == "t")
    head = KnownHead.learn(memory, 100)
    features = rng.normal(size=(17, 128)).astype(np.float32)
    scores = head.score(features)
    for start, end in ((0, 1), (3, 5), (2, 17)):
        np.testing.assert_array_equal(head.score(features[start:end]), scores[start:end])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30))
def test_p_values_are_the_largest_of_the_populations(scores: list[float]) -> None:
    memory = HEAD.memory
    calibration = HEAD.score(memory.values(EVERY))
    each = [
        [(1 + sum(c >= s for c in calibration[rows])) / (len(rows) + 1) for s in scores]
        for rows in memory.populations().values()
    ]
    np.testing.assert_allclose(HEAD.p_values(scores), np.max(each, axis=0), rtol=1e-9)


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=30))
def test_both_channels_are_judged_by_the_sum_of_their_evidence(scores: list[tuple[float, float]]) -> None:
    """Literally: the greater sign, and the normal score of the first channel's; then p-values."""
    memory, (stretch, shift) = HEAD.memory, HEAD.platt
    rows = memory.rows(CALIBRATE) & ~memory.positive
    levels = normal_levels(memory.unusual[rows], balance(memory.sets[rows], memory.positive[rows]))

    def evidence(score: float, unusual: float) -> float:
        return (score - shift) / stretch + float(normal_scores([unusual], levels)[0])

    known, first = map(np.array, zip(*scores, strict=True))
    wanted = [evidence(*pair) for pair in scores]
    np.testing.assert_allclose(HEAD.fused(known, first), wanted, rtol=1e-6, atol=1e-6)
    calibration = HEAD.fused(HEAD.score(memory.values(EVERY)), memory.unusual)
    fused = HEAD.fused(known, first)
    each = [
        [(1 + sum(c >= s - MARGIN for c in calibration[rows])) / (len(rows) + 1) for s in fused]
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
    memory = Memory.empty(LIKE[:, :D])
    centres = {"a": 0.0, "b": 1.0, "x": 2.0}
    for name, centre in centres.items():
        for use in (LEARN, CALIBRATE):
            looks = rng.normal(centre, 1, (400, 1, D + 1))
            memory = memory.add(name, name == "x", looks[..., :D], looks[..., D], use)
    head = replace(learn(memory), margin=0.0)
    fresh = {name: rng.normal(centre, 1, (4000, D + 1)) for name, centre in centres.items()}
    scores = {name: head.score(rows[:, :D]) for name, rows in fresh.items()}
    alone = {name: head.p_values(one) for name, one in scores.items()}
    fused = {name: head.fused_p(one, fresh[name][:, D]) for name, one in scores.items()}
    for p_values in (alone, fused):
        flagged = {name: (one <= 0.05).mean() for name, one in p_values.items()}
        assert flagged["a"] < 0.05
        assert flagged["b"] == pytest.approx(0.05, abs=0.025)
        assert flagged["x"] > flagged["b"]


def test_photographs_of_a_population_that_is_not_known_keep_the_promise_up_to_the_margin() -> None:
    rng = np.random.default_rng(3)
    looks = {name: rng.normal(centre, 1, (4000, 1, D + 1)) for name, centre in (("a", 0.0), ("x", 2.0))}
    memory = Memory.empty(LIKE[:, :D])
    for name, rows in looks.items():
        for use, half in ((LEARN, rows[:2000]), (CALIBRATE, rows[2000:])):
            memory = memory.add(name, name == "x", half[..., :D], half[..., D], use)
    head = learn(memory)
    alone = rng.normal(0, 1, (20000, D + 1))
    scores, unusual = head.score(alone[:, :D]), alone[:, D]

    def flagged(margin: float, stranger: float) -> float:
        """Of photographs whose `fused` evidence is greater by that than that of those known."""
        greater = scores + stranger * head.platt[0]
        return float((replace(head, margin=margin).fused_p(greater, unusual) <= 0.05).mean())

    assert flagged(0.0, 0.0) == pytest.approx(0.05, abs=0.01)
    assert flagged(0.0, MARGIN) > 0.06
    assert flagged(MARGIN, MARGIN) == pytest.approx(flagged(0.0, 0.0), abs=1e-4)
    assert flagged(MARGIN, 0.0) < 0.04


def test_a_bundle_of_before_the_margin_has_none() -> None:
    arrays = HEAD.to_arrays()
    del arrays["margin"]
    assert again_from(HEAD, arrays).margin == 0
    assert again_from(HEAD, HEAD.to_arrays()).margin == MARGIN


def again_from(head: KnownHead, arrays: dict[str, np.ndarray]) -> KnownHead:
    return KnownHead.from_arrays(
        arrays, dict(zip(head.memory.names, head.memory.generated.tolist(), strict=True))
    )


@pytest.mark.parametrize("head", [HEAD, TAUGHT_HEAD], ids=["shown", "taught"])
def test_a_head_survives_its_arrays(head: KnownHead) -> None:
    again = again_from(head, head.to_arrays())
    np.testing.assert_array_equal(again.score(np.eye(D + F)), head.score(np.eye(D + F)))
    np.testing.assert_array_equal(again.p_values([0.0, 2.0]), head.p_values([0.0, 2.0]))
    np.testing.assert_array_equal(again.fused_p([0.0, 2.0], [1.0, 2.0]), head.fused_p([0.0, 2.0], [1.0, 2.0]))


BROKEN: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "missing": lambda arrays: arrays.pop("weights"),
    "type": lambda arrays: arrays.update(features=arrays["features"].astype(np.float32)),
    "shape": lambda arrays: arrays.update(weights=arrays["weights"][:2]),
    "bias": lambda arrays: arrays.update(bias=np.zeros(2)),
    "margin": lambda arrays: arrays.update(margin=np.zeros(2)),
    "margin below nought": lambda arrays: arrays.update(margin=np.array([-0.1])),
    "margin nan": lambda arrays: arrays.update(margin=np.array([np.nan])),
    "margin infinite": lambda arrays: arrays.update(margin=np.array([np.inf])),
    "bias nan": lambda arrays: arrays.update(bias=np.array([np.nan])),
    "weights infinite": lambda arrays: arrays.update(weights=np.full(D, np.inf)),
    "grid nan": lambda arrays: arrays["grid"].__setitem__((0, 1), np.nan),
    "grid without steps": lambda arrays: arrays["grid"].__setitem__((1, 1), 0),
    "grid of too few": lambda arrays: arrays.update(grid=arrays["grid"][:, :D]),
    "unusual nan": lambda arrays: arrays["unusual"].__setitem__(0, np.nan),
    "unusual of too few": lambda arrays: arrays.update(unusual=arrays["unusual"][1:]),
    "faces": lambda arrays: arrays["faces"].__setitem__(3, 40),
    "first face": lambda arrays: arrays.update(faces=arrays["faces"] + np.int32(1)),
    "centre": lambda arrays: arrays.update(centre=np.zeros((1, D))),
    "centre too short": lambda arrays: arrays.update(centre=np.zeros(2)),
    "whitening": lambda arrays: arrays.update(whitening=np.eye(D + 1, dtype=np.float32)),
    "whitening nan": lambda arrays: arrays["whitening"].__setitem__((0, 0), np.nan),
    "levels": lambda arrays: arrays.update(levels=arrays["levels"][:2]),
    "levels that fall": lambda arrays: arrays.update(levels=arrays["levels"][:, ::-1].copy()),
    "levels nan": lambda arrays: arrays["levels"].__setitem__((2, 0), np.nan),
    "more levels": lambda arrays: arrays.update(
        kin=np.ones(1, bool), taught_levels=arrays["levels"][None, :2]
    ),
    "kin": lambda arrays: arrays.update(kin=np.ones(1, bool)),
    "platt": lambda arrays: arrays.update(platt=np.ones(3)),
    "platt turned round": lambda arrays: arrays.update(platt=np.array([-1.0, 0.0])),
    "weights too large": lambda arrays: arrays.update(weights=np.full(D, 1e308)),
    "set": lambda arrays: arrays["sets"].__setitem__(0, 4),
    "negative set": lambda arrays: arrays["sets"].__setitem__(0, -1),
    "use": lambda arrays: arrays["uses"].__setitem__(0, 7),
    "rows": lambda arrays: arrays.update(uses=arrays["uses"][1:]),
    "no photographs": lambda arrays: arrays["uses"].fill(LEARN),
    "one dimension": lambda arrays: arrays.update(features=arrays["features"].ravel()),
    "taught photographs": lambda arrays: arrays["taught"].fill(True),
    "taught sets": lambda arrays: arrays.update(taught=arrays["taught"][1:]),
    "a regression of nothing": lambda arrays: arrays.update(
        taught_weights=np.zeros((1, D + F)),
        taught_bias=np.zeros(1),
        kin=np.ones(1, bool),
        taught_levels=arrays["levels"][None, :2],
    ),
    "taught weights without a bias": lambda arrays: arrays.update(taught_weights=np.zeros((1, D + F))),
    "no regression of its own": lambda arrays: arrays["taught"].__setitem__(-1, True),
    "a number in the place of features": lambda arrays: arrays.update(features=np.array(1, np.uint8)),
    "no regression": lambda arrays: arrays.update(weights=np.zeros(0)),
    "fewer scores": lambda arrays: arrays.update(calibration=arrays["calibration"][1:]),
    "other scores": lambda arrays: arrays["calibration"].__iadd__(0.1),
    "no score": lambda arrays: arrays["calibration"].__setitem__(0, np.nan),
}


@pytest.mark.parametrize("what", BROKEN)
def test_malformed_arrays_are_refused(what: str) -> None:
    arrays = {name: array.copy() for name, array in HEAD.to_arrays().items()}
    BROKEN[what](arrays)
    with pytest.raises(ValueError):
        again_from(HEAD, arrays)


BROKEN_LESSON: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "weights nan": lambda arrays: arrays["taught_weights"].__setitem__((0, 1), np.nan),
    "weights of the first kind alone": lambda arrays: arrays.update(
        taught_weights=arrays["taught_weights"][:, :D]
    ),
    "bias nan": lambda arrays: arrays["taught_bias"].__setitem__(1, np.nan),
    "levels that fall": lambda arrays: arrays["taught_levels"].__setitem__((0, 1, 3), 99.0),
    "levels nan": lambda arrays: arrays["taught_levels"].__setitem__((1, 0, 24), np.nan),
    "one as the other": lambda arrays: arrays["kin"].__setitem__(slice(None), arrays["kin"][::-1].copy()),
    "one alone": lambda arrays: arrays["taught"].__setitem__(-1, False),
}


@pytest.mark.parametrize("what", BROKEN_LESSON)
def test_malformed_lessons_are_refused(what: str) -> None:
    arrays = {name: array.copy() for name, array in TAUGHT_HEAD.to_arrays().items()}
    BROKEN_LESSON[what](arrays)
    with pytest.raises(ValueError, match="known channel"):
        again_from(TAUGHT_HEAD, arrays)


def test_a_class_that_is_missing_is_named() -> None:
    some = np.zeros((3, 1, D + F)), np.zeros((3, 1))
    calibrated = Memory.empty(LIKE).add("a", False, *some, CALIBRATE)
    with pytest.raises(ValueError, match="no generated faces"):
        learn(calibrated.add("a", False, *some, LEARN))
    with pytest.raises(ValueError, match="no photographs to learn"):
        learn(calibrated.add("x", True, *some, LEARN))
    both = calibrated.add("a", False, *some, LEARN).add("x", True, *some, LEARN)
    with pytest.raises(ValueError, match="no faces of a taught generator"):
        learn(both.add("t", True, *some, CALIBRATE, taught=True))
    with pytest.raises(ValueError, match="photographs to calibrate"):
        learn(Memory.empty(LIKE).add("a", False, *some, LEARN).add("x", True, *some, LEARN))


def test_a_head_that_is_the_wrong_way_round_is_refused() -> None:
    memory = memory_of(held_out=False).add(
        "x", True, np.random.default_rng(0).normal(-1, 0.3, (50, 1, D + F)), np.zeros((50, 1)), CALIBRATE
    )
    with pytest.raises(ValueError, match="kept apart"):
        learn(memory)


def test_faces_as_they_are_keep_the_promise_where_handed_on_they_look_less_strange() -> None:
    """However the channels depend on each other."""
    rng = np.random.default_rng(2)
    for dependence in (1.0, 0.0, -1.0):

        def looks(n: int, centre: float, depends: float = dependence) -> tuple[np.ndarray, np.ndarray]:
            features = rng.normal(centre, 1, (n, 3, D))
            first = depends * features.sum(axis=2) + rng.normal(size=(n, 3)) - np.array([0.0, 1.5, 1.5])
            return features, first

        memory = Memory.empty(LIKE[:, :D])
        for use in (LEARN, CALIBRATE):
            memory = memory.add("a", False, *looks(600, 0.0), use).add("x", True, *looks(200, 2.0), use)
        head = replace(learn(memory), margin=0.0)
        features, first = looks(4000, 0.0)
        fused_p = head.fused_p(head.score(features[:, 0]), first[:, 0])
        assert 0.03 < (fused_p <= 0.05).mean() < 0.07, dependence
        handed_on = head.fused_p(head.score(features[:, 1]), first[:, 1])
        assert (handed_on <= 0.05).mean() < 0.05, dependence
