"""EM with less work ends where scikit-learn's does, and leaves out only what changes no digit."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from lensborn import em

Array = NDArray[np.float64]


def clusters(n: int = 1500, d: int = 120, k: int = 3, near: float = 0.5, seed: int = 0) -> Array:
    """Centred points about k centres, with variances that fall off by three orders of magnitude."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, d + 1) ** -0.75
    points = np.empty((n, d))
    for number in range(k):
        turn = np.linalg.qr(rng.normal(size=(d, d)) + 3 * np.eye(d))[0]
        own = slice(number, None, k)
        points[own] = (
            near * rng.normal(size=d) * spread + (rng.normal(size=points[own].shape) * spread) @ turn
        )
    return points - points.mean(axis=0)


def log_likelihood(fitted: em.Fitted, rows: Array) -> Array:
    parts = [
        np.log(weight) + multivariate_normal(mean, covariance, allow_singular=False).logpdf(rows)
        for weight, mean, covariance in zip(fitted.weights, fitted.means, fitted.covariances, strict=True)
    ]
    return np.asarray(np.logaddexp.reduce(parts))


@pytest.mark.parametrize("near", [0.0, 0.5, 5.0])
def test_it_ends_where_scikit_learn_does(near: float) -> None:
    """Which works in float64, on every row for every component. Clusters share all, some and none of their rows."""
    x = clusters(near=near)
    ridge = 1e-6 * x.var(axis=0).mean()
    theirs = GaussianMixture(3, reg_covar=ridge, max_iter=200, random_state=0).fit(x)
    ours = em.fit_full(x, 3, ridge=ridge, max_steps=200, seed=0)
    assert (ours.converged, ours.steps) == (theirs.converged_, theirs.n_iter_)
    np.testing.assert_allclose(ours.weights, theirs.weights_, atol=1e-4)
    np.testing.assert_allclose(log_likelihood(ours, x), theirs.score_samples(x), atol=0.05)


def test_what_is_left_unfinished_is_below_its_bound() -> None:
    x = clusters(near=2.0)
    fitted = em.fit_full(x, 3, ridge=1e-9, max_steps=5, seed=0)
    factors = np.array([em._precision_factor(covariance) for covariance in fitted.covariances])
    constants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    components = em._Components(
        fitted.weights, fitted.means, fitted.covariances, factors.astype(np.float32), constants
    )
    rows = x.astype(np.float32)
    for i in range(3):
        whole = em._log_densities(rows, components, i, np.full(len(rows), -np.inf))
        least = np.quantile(whole, np.random.default_rng(i).uniform(size=len(rows)))
        some = em._log_densities(rows, components, i, least)
        assert (np.isneginf(some) == (whole < least)).all()
        kept = whole >= least
        np.testing.assert_allclose(some[kept], whole[kept], rtol=1e-5)
        literal = multivariate_normal(fitted.means[i], fitted.covariances[i]).logpdf(x)
        np.testing.assert_allclose(whole - whole[0], literal - literal[0], atol=0.5, rtol=1e-3)


def test_a_start_on_few_axes_is_no_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clusters(near=0.5)
    plain = em.fit_full(x, 3, ridge=1e-9, max_steps=200, seed=0)
    monkeypatch.setattr(em, "MANY_DIMS", 100)
    started = em.fit_full(x, 3, ridge=1e-9, max_steps=200, seed=0)
    assert started.converged and started.steps <= plain.steps
    assert log_likelihood(started, x).mean() > log_likelihood(plain, x).mean() - 0.1


def test_a_covariance_without_an_inverse_is_an_error() -> None:
    x = clusters(n=60, k=1)  # fewer points than dimensions
    with pytest.raises(np.linalg.LinAlgError):
        em.fit_full(x, 2, ridge=1e-30, max_steps=5, seed=0)
