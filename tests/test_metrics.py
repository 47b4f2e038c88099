import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, ttest_1samp
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
    roc_curve,
)

from lensborn.bench import metrics

# Few distinct values, so that most examples have ties within and across the classes.
value = st.integers(-4, 4).map(lambda n: n / 3)
tied = st.lists(value, min_size=1, max_size=40)


def values(real, fake, threshold=0.0):
    found = metrics.measures(real, fake, threshold, replicates=2)
    return {name: interval.value for name, interval in found.items()}


def literal(real, fake, threshold):
    """Every number by scikit-learn."""
    labels, scores = np.r_[np.zeros(len(real)), np.ones(len(fake))], np.r_[real, fake]
    flagged = scores >= threshold
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return {
        "auc": roc_auc_score(labels, scores),
        "ap": average_precision_score(labels, scores),
        "tpr_at_1": tpr[fpr <= 0.01].max(),
        "tpr_at_5": tpr[fpr <= 0.05].max(),
        "accuracy": accuracy_score(labels, flagged),
        "balanced_accuracy": balanced_accuracy_score(labels, flagged),
        "found": flagged[labels == 1].mean(),
        "false_alarms": flagged[labels == 0].mean(),
    }


@given(tied, tied, value)
def test_numbers_equal_scikit_learns(real, fake, threshold):
    assert values(real, fake, threshold) == pytest.approx(literal(real, fake, threshold), abs=1e-9)


def test_large_continuous_scores_equal_scikit_learn():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=3000), rng.normal(0.7, 2, size=2000)
    assert values(real, fake, 1.0) == pytest.approx(literal(real, fake, 1.0), abs=1e-9)


def test_known_values_and_orientation():
    assert values([0, 1], [2, 3])["auc"] == 1  # generated higher: right side up
    assert values([2, 3], [0, 1])["auc"] == 0
    assert values([1, 1], [1, 1, 1])["auc"] == 0.5
    assert values([0, 2], [1, 2])["auc"] == 0.625  # 1 + 0 + 1 + 1/2 of four pairs
    assert values([2, 0], [3, 1])["ap"] == pytest.approx((1 + 2 / 3) / 2)
    assert values(range(100), [98.5, 99.5])["tpr_at_1"] == 1
    assert values(range(200), [198.5, 195.5, 0])["tpr_at_1"] == pytest.approx(1 / 3)
    assert values([0, 1, 2, 3], [3], 3)["accuracy"] == 0.8
    assert values([0, 1, 2, 3], [3], 3)["balanced_accuracy"] == 0.875


@pytest.mark.parametrize("bad", [[], [[1.0]], [np.nan], [np.inf]])
def test_scores_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(ValueError, match="real"):
        metrics.measures(bad, [1.0], 0.0)


def test_a_replicate_is_the_number_of_the_drawn_pictures():
    rng = np.random.default_rng(1)
    real, fake = rng.integers(0, 5, 30).astype(float), rng.integers(1, 7, 20).astype(float)
    weights = [metrics.resample(rng, 8, np.full(n, "")) for n in (30, 20)]
    weighted = metrics._of_curve(metrics.curves(real, fake, *weights))
    for replicate, (r, f) in enumerate(zip(*weights, strict=True)):
        drawn = values(np.repeat(real, r.astype(int)), np.repeat(fake, f.astype(int)), 3.0)
        for name, values_of_all in weighted.items():
            assert values_of_all[replicate] == pytest.approx(drawn[name], abs=1e-12)


def coverage(draw, truth, simulations, name="auc"):
    rng = np.random.default_rng(20)
    covered = 0
    for simulation in range(simulations):
        real, fake, groups = draw(rng)
        interval = metrics.measures(real, fake, 1.0, real_groups=groups, replicates=200, seed=simulation)[
            name
        ]
        covered += interval.low <= truth <= interval.high
    return covered / simulations


@pytest.mark.parametrize("name", ["auc", "balanced_accuracy"])
def test_intervals_cover_the_truth(name):
    """benchmarks/interval_coverage.py has all numbers and sizes."""
    truth = {"auc": norm.cdf(1 / np.sqrt(2)), "balanced_accuracy": (norm.cdf(1) + 0.5) / 2}[name]
    share = coverage(lambda rng: (rng.normal(size=80), rng.normal(1, 1, size=80), None), truth, 1000, name)
    assert 0.93 <= share <= 0.97


def test_clustered_photographs_need_the_cluster_bootstrap():
    def draw(rng):  # 40 sources of 6 photographs; 80 % of the variance is the source's
        source = np.repeat(np.arange(40), 6)
        real = np.sqrt(0.8) * rng.normal(size=40)[source] + np.sqrt(0.2) * rng.normal(size=240)
        return real, rng.normal(1, 1, size=240), source.astype(str)

    def draw_blind(rng):
        real, fake, _ = draw(rng)
        return real, fake, None

    truth = norm.cdf(1 / np.sqrt(2))
    assert 0.88 <= coverage(draw, truth, 120) <= 0.99
    assert coverage(draw_blind, truth, 120) < 0.80


def test_resampling_keeps_strata_and_groups():
    strata = np.repeat(["a", "b"], [30, 50])
    groups = np.array([f"g{i % 15}" for i in range(80)])
    counts = metrics.resample(np.random.default_rng(0), 100, strata, groups)
    assert (counts[:, 30:].sum(axis=1) > 0).all()
    for stratum in "ab":
        for group in np.unique(groups):
            mine = counts[:, (strata == stratum) & (groups == group)]
            assert (mine == mine[:, :1]).all()
    by_picture = metrics.resample(np.random.default_rng(0), 100, strata)
    assert (by_picture[:, :30].sum(axis=1) == 30).all()
    assert (by_picture[:, 30:].sum(axis=1) == 50).all()
    few = metrics.resample(np.random.default_rng(0), 100, strata, np.repeat(["x", "y"], 40))
    assert np.array_equal(few, by_picture)  # too few groups: by picture


def test_a_share_has_wilsons_interval():
    assert metrics.rate(np.arange(10) < 1) == pytest.approx((0.1, 0.01787621, 0.40415002), abs=1e-7)
    assert metrics.rate(np.zeros(10, bool)) == pytest.approx((0, 0, 0.27753279), abs=1e-7)  # 3.84 / 13.84
    with pytest.raises(ValueError, match="at least one"):
        metrics.rate([])


def test_a_share_by_groups_is_as_wide_as_the_groups_say():
    flagged = np.arange(400) < 100
    alone = metrics.rate(flagged)
    whole = metrics.rate(flagged, groups=(np.arange(400) // 10).astype(str))  # 40 groups, each all or none
    forty = metrics.rate(flagged[::10])
    assert whole.high - whole.low > 2.5 * (alone.high - alone.low)
    assert (whole.low, whole.high) == pytest.approx((forty.low, forty.high), abs=0.03)
    none = metrics.rate(np.zeros(400, bool), groups=(np.arange(400) // 10).astype(str))
    assert none == metrics.rate(np.zeros(40, bool))


def test_a_sum_of_shares_recovers_the_variance_of_its_parts():
    one, other = metrics.Interval(0.5, 0.47, 0.53), metrics.Interval(0.2, 0.16, 0.24)
    assert metrics.weighted_sum((1, one), (1, other)) == pytest.approx((0.7, 0.65, 0.75))


def test_intervals_are_seeded_and_hold_their_number():
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=60), rng.normal(0.5, 1, size=40)
    first = metrics.measures(real, fake, 0.5, seed=1)
    assert metrics.measures(real, fake, 0.5, seed=1) == first
    assert metrics.measures(real, fake, 0.5, seed=2)["auc"] != first["auc"]
    for name, (number, low, high) in first.items():
        if name.startswith("tpr"):  # three photographs at most stand above the threshold
            assert np.isnan([low, high]).all()
        else:
            assert 0 <= low <= number <= high <= 1
    many = metrics.measures(rng.normal(size=1000), fake, 0.5)
    assert all(0 <= i.low <= i.value <= i.high <= 1 for i in many.values())
    apart = metrics.measures([0.0, 1.0], [2.0, 3.0], 1.5)["auc"]  # no resample differs from the sample
    assert apart.value == apart.high == 1 > apart.low


def test_over_sets_averages_pools_and_finds_the_worst():
    rng = np.random.default_rng(4)
    real = rng.normal(size=80)
    fakes = {"good": rng.normal(2, 1, 50), "bad": rng.normal(-0.5, 1, 20)}
    over = metrics.over_sets(real, fakes, 1.0)
    single = {name: values(real, fake, 1.0) for name, fake in fakes.items()}
    for name, interval in over.macro.items():
        assert interval.value == pytest.approx((single["good"][name] + single["bad"][name]) / 2)
    pooled = values(real, np.concatenate(list(fakes.values())), 1.0)
    assert {name: interval.value for name, interval in over.micro.items()} == pytest.approx(pooled)
    assert over.worst[0] == "bad"
    assert over.worst[1].value == single["bad"]["auc"]


def delong_variance(real_a, fake_a, real_b, fake_b):
    """Variance of the difference of two AUCs (DeLong et al. 1988), pair by pair."""
    parts = []
    for real, fake in ((real_a, fake_a), (real_b, fake_b)):
        wins = np.array([[(f > r) + 0.5 * (f == r) for r in real] for f in fake])
        parts.append((wins.mean(axis=1), wins.mean(axis=0)))
    (fake_a, real_a), (fake_b, real_b) = parts
    return np.var(fake_a - fake_b, ddof=1) / len(fake_a) + np.var(real_a - real_b, ddof=1) / len(real_a)


def test_paired_differences_agree_with_delong():
    rng = np.random.default_rng(5)
    real, fake = rng.normal(size=120), rng.normal(1, 1, size=90)
    other_real, other_fake = real + rng.normal(size=120), fake + rng.normal(size=90)
    found = metrics.paired(real, fake, other_real, other_fake)
    spread = np.sqrt(delong_variance(real, fake, other_real, other_fake))
    assert (found.high - found.low) / (2 * metrics.Z) == pytest.approx(spread, rel=0.1)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(found.difference) / spread), abs=0.03)
    same = metrics.paired(real, fake, real, fake)
    assert same == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="same pictures"):
        metrics.paired(real, fake, real[:-1], fake)


def test_a_single_picture_says_nothing():
    found = metrics.measures([0.0], [1.0, 2.0], 0.5)
    assert (found["auc"].low, found["auc"].high) == (0, 1)
    assert metrics.paired([0.0], [1.0, 2.0], [1.0], [0.0, 2.0])[1:] == (-1, 1, 1)


def test_paired_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(6)
    p_values = []
    for seed in range(200):
        real, fake = rng.normal(size=60), rng.normal(1, 1, size=60)
        noisy = [scores + rng.normal(size=60) for scores in (real, fake, real, fake)]
        p_values.append(metrics.paired(*noisy, replicates=200, seed=seed).p_value)
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.10
    assert 0.40 <= np.mean(np.array(p_values) <= 0.5) <= 0.60


def test_equally_right_counts_only_where_the_two_differ():
    right = np.array([1] * 10 + [0] * 5, dtype=bool)
    assert metrics.equally_right(right, right) == 1
    other = right.copy()
    other[:6] = False
    assert metrics.equally_right(right, other) == pytest.approx(2 * 0.5**6)  # six against none


def test_equally_right_by_source_is_students_test_of_the_sources():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(15), 8).astype(str)
    lean = rng.normal(0.2, 0.3, 15)[groups.astype(int)]
    a, b = rng.random(120) < 0.6 + lean, rng.random(120) < 0.6
    each = (a.astype(float) - b).reshape(15, 8).mean(axis=1)
    assert metrics.equally_right(a, b, groups=groups) == pytest.approx(ttest_1samp(each, 0).pvalue)


def test_sources_that_all_differ_alike_are_counted_as_sources():
    groups = np.repeat(np.arange(10), 20).astype(str)
    one, none = np.ones(200, bool), np.zeros(200, bool)
    assert metrics.equally_right(one, none, groups=groups) == pytest.approx(2 * 0.5**10)
    assert metrics.equally_right(one, one, groups=groups) == 1


def test_a_paired_interval_leaves_out_0_just_where_its_p_value_is_below_5_per_cent():
    rng = np.random.default_rng(8)
    seen = set()
    for seed in range(60):
        groups = np.repeat(np.arange(12), 3).astype(str)
        real, fake = rng.normal(size=36), rng.normal(0.8, 1, 36)
        other = [scores + rng.normal(0, 0.8, 36) for scores in (real, fake - 0.4)]
        found = metrics.paired(
            real, fake, *other, real_groups=groups, fake_groups=groups, replicates=100, seed=seed
        )
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
        seen.add(found.p_value < 0.05)
    assert seen == {True, False}


def test_many_pictures_take_no_more_memory_than_some():
    rng = np.random.default_rng(0)
    tracemalloc.start()
    metrics.measures(rng.normal(size=120_000), rng.normal(size=120_000), 2.0, replicates=30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600e6


def test_a_picture_is_drawn_with_its_source_where_its_set_names_enough():
    strata = np.array(["many"] * 24 + ["few"] * 6)
    groups = np.array([f"s{n % 12}" for n in range(24)] + ["one"] * 6)
    named = metrics.units_of(strata, groups)
    assert named[:24].tolist() == groups[:24].tolist()
    assert len(set(named[24:])) == 6
    assert not set(named[24:]) & set(groups)


def test_holm_is_the_stepped_adjustment():
    assert metrics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert metrics.holm([]) == []
    for order in itertools.permutations([0.5, 0.9, 0.001]):
        assert dict(zip(order, metrics.holm(order), strict=True)) == pytest.approx(
            {0.5: 1, 0.9: 1, 0.001: 0.003}
        )
