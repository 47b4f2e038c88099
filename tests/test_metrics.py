import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    roc_auc_score,
    roc_curve,
)

from lensborn.bench import metrics

# Few distinct values, so that most examples have ties within and across the classes.
tied = st.lists(st.integers(-4, 4).map(lambda n: n / 3), min_size=1, max_size=40)


def labelled(real, fake):
    return np.r_[np.zeros(len(real)), np.ones(len(fake))], np.r_[real, fake]


@given(tied, tied)
def test_curve_metrics_equal_scikit_learn(real, fake):
    labels, scores = labelled(real, fake)
    assert metrics.auc(real, fake) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert metrics.average_precision(real, fake) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-9
    )
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    for limit in (0.01, 0.05, 0.5):
        assert metrics.tpr_at_fpr(real, fake, limit) == pytest.approx(tpr[fpr <= limit].max(), abs=1e-9)


@given(tied, tied, st.integers(-4, 4).map(lambda n: n / 3))
def test_rates_at_a_threshold_equal_scikit_learn(real, fake, threshold):
    labels, scores = labelled(real, fake)
    flagged = scores >= threshold
    assert metrics.accuracy(real, fake, threshold) == pytest.approx(accuracy_score(labels, flagged), abs=1e-9)
    assert metrics.balanced_accuracy(real, fake, threshold) == pytest.approx(
        balanced_accuracy_score(labels, flagged), abs=1e-9
    )
    assert metrics.false_alarm_rate(real, threshold) == pytest.approx(flagged[labels == 0].mean())


def test_large_continuous_scores_equal_scikit_learn():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=3000), rng.normal(0.7, 2, size=2000)
    labels, scores = labelled(real, fake)
    assert metrics.auc(real, fake) == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert metrics.average_precision(real, fake) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-9
    )


def test_known_values_and_orientation():
    assert metrics.auc([0, 1], [2, 3]) == 1  # generated higher: right side up
    assert metrics.auc([2, 3], [0, 1]) == 0
    assert metrics.auc([1, 1], [1, 1, 1]) == 0.5
    assert metrics.auc([0, 2], [1, 2]) == 0.625  # 1 + 0 + 1 + 1/2 of four pairs
    assert metrics.average_precision([2, 0], [3, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.tpr_at_fpr(range(100), [98.5, 99.5], 0.01) == 1
    assert metrics.tpr_at_fpr(range(100), [98.5, 99.5], 0.009) == 0.5
    assert metrics.accuracy([0, 1, 2, 3], [3], 3) == 0.8
    assert metrics.balanced_accuracy([0, 1, 2, 3], [3], 3) == 0.875


@pytest.mark.parametrize("bad", [[], [[1.0]], [np.nan], [np.inf]])
def test_scores_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(ValueError, match="real"):
        metrics.auc(bad, [1.0])


@pytest.mark.parametrize("statistic", [metrics.auc_of, metrics.average_precision_of])
def test_a_bootstrap_replicate_is_the_metric_of_the_drawn_pictures(statistic):
    rng = np.random.default_rng(1)
    real, fake = rng.integers(0, 5, 30).astype(float), rng.integers(1, 7, 20).astype(float)
    real_weights = metrics.resample(rng, 8, np.full(30, ""))
    fake_weights = metrics.resample(rng, 8, np.full(20, ""))
    weighted = statistic(metrics._curves(real, fake, real_weights, fake_weights))
    drawn = [
        metrics.point(statistic, np.repeat(real, r.astype(int)), np.repeat(fake, f.astype(int)))
        for r, f in zip(real_weights, fake_weights, strict=True)
    ]
    np.testing.assert_allclose(weighted, drawn, atol=1e-12)


def coverage(draw, truth, simulations, **options):
    rng = np.random.default_rng(20)
    covered = 0
    for simulation in range(simulations):
        real, fake, groups = draw(rng)
        low, high = metrics.bootstrap(
            metrics.auc_of, real, fake, real_groups=groups, replicates=400, seed=simulation, **options
        )
        covered += low <= truth <= high
    return covered / simulations


def test_intervals_cover_the_truth():
    share = coverage(
        lambda rng: (rng.normal(size=80), rng.normal(1, 1, size=80), None), norm.cdf(1 / np.sqrt(2)), 1000
    )
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


def test_bootstrap_is_seeded_and_does_not_depend_on_memory(monkeypatch):
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=60), rng.normal(0.5, 1, size=40)
    first = metrics.bootstrap(metrics.auc_of, real, fake, seed=1)
    assert metrics.bootstrap(metrics.auc_of, real, fake, seed=1) == first
    assert metrics.bootstrap(metrics.auc_of, real, fake, seed=2) != first
    monkeypatch.setattr(metrics, "_CHUNK", 100 * 300)
    chunked = metrics.bootstrap(metrics.auc_of, real, fake, seed=1)
    np.testing.assert_allclose(chunked, first, atol=0.02)
