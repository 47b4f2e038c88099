"""Mixtures of Gaussians with full covariances, fitted by EM with less work than usual, and to the same end.

Source: Dempster, Laird and Rubin, "Maximum likelihood from incomplete data via the EM algorithm" (JRSS B, 1977).
Ridge and end are those of scikit-learn's GaussianMixture: a constant on every variance, and a mean log-likelihood
that moves by less than `TOLERANCE` in a step. What makes it cheaper:

- the rows are whitened first (principal axes, each of variance 1), so that distances in float32 are exact enough
  however far their variances lie apart; the likelihood changes by a constant, its steps not at all;
- a component learns from the rows that it has a share in: of many dimensions, hardly a row is shared by two;
- a square |(y - m) P|^2 is summed over blocks of the triangular P, and left as soon as the component's share of the
  row is sure to be below e^-CUTOFF, which changes no digit of a double;
- with many dimensions, k-means is followed by EM on the first `START_DIMS` axes alone, which costs next to nothing
  and ends where fewer steps are needed, and mostly at a higher likelihood (docs/speed.md).

Imported only to fit: SciPy and scikit-learn take half a second.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from sklearn.cluster import KMeans

TOLERANCE = 1e-3  # nats a row
CUTOFF = 40.0  # nats: e^-40 is less than the rounding of a double
NEGLIGIBLE = 1e-9  # a share from which nothing is learnt
BLOCK = 96  # columns of P at a time
START_DIMS = 32  # of the first EM, where there are more than MANY_DIMS
MANY_DIMS = 256  # with fewer, a step is cheap

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fitted:
    """weights: (K,). means: (K, D). covariances: (K, D, D), ridge included. converged: within the steps allowed."""

    weights: Floats
    means: Floats
    covariances: Floats
    converged: bool
    steps: int


@dataclass(frozen=True, eq=False)
class _Components:
    """Of whitened rows. factors: upper triangular P (K, D, D), S^-1 = P P^T. constants: log w + log |P|, (K,)."""

    weights: Floats
    means: Floats
    covariances: Floats
    factors: Rows
    constants: Floats


def fit_full(centred: Floats, k: int, *, ridge: float, max_steps: int, seed: int) -> Fitted:
    """Fit k Gaussians to centred rows (N, D). ridge: added to each variance.

    Raises numpy.linalg.LinAlgError where a covariance has no inverse.
    """
    labels = KMeans(k, n_init=1, random_state=seed).fit(centred.astype(np.float32)).labels_
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    axes = axes[:, ::-1]  # of greatest variance first: there the clusters are told apart
    scales = np.sqrt(np.maximum(variances[::-1], 0) + ridge)
    rows = (centred @ (axes / scales)).astype(np.float32)
    ridges = ridge / scales**2
    shares = np.eye(k)[labels]
    if rows.shape[1] > MANY_DIMS:
        few = np.ascontiguousarray(rows[:, :START_DIMS])
        shares = _converge(few, shares, ridges[:START_DIMS], max_steps)[0]
    shares, converged, steps = _converge(rows, shares, ridges, max_steps)
    components = _maximisation(rows, shares, ridges)
    back = scales[:, None] * axes.T
    return Fitted(
        components.weights,
        components.means @ back,
        np.array([back.T @ covariance @ back for covariance in components.covariances]),
        converged,
        steps,
    )


def _converge(rows: Rows, shares: Floats, ridges: Floats, max_steps: int) -> tuple[Floats, bool, int]:
    """EM from the components' shares of the rows (N, K) to where it ends: shares, whether it converged, steps."""
    bound = -np.inf
    for step in range(1, max_steps + 1):
        components = _maximisation(rows, shares, ridges)
        shares, reached = _expectation(rows, components, shares.argmax(axis=1))
        if abs(reached - bound) < TOLERANCE:
            return shares, True, step
        bound = reached
    return shares, False, max_steps


def _maximisation(rows: Rows, shares: Floats, ridges: Floats) -> _Components:
    """The components that explain rows (N, D) best, given their shares (N, K). ridges: (D,), added to variances."""
    k, d = shares.shape[1], rows.shape[1]
    totals = shares.sum(axis=0) + 10 * np.finfo(float).eps  # one may have lost all its rows
    means, covariances, factors = np.zeros((k, d)), np.zeros((k, d, d)), np.zeros((k, d, d))
    for i, (share, total) in enumerate(zip(shares.T, totals, strict=True)):
        own = share > NEGLIGIBLE
        mine, weights = rows[own].astype(float), share[own, None]
        means[i] = (weights * mine).sum(axis=0) / total
        spread = np.sqrt(weights) * (mine - means[i])
        covariances[i] = spread.T @ spread / total + np.diag(ridges)
        factors[i] = _precision_factor(covariances[i])
    weights = totals / totals.sum()
    constants = np.log(weights) + np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
    return _Components(weights, means, covariances, factors.astype(np.float32), constants)


def _precision_factor(covariance: Floats) -> Floats:
    """Upper triangular P with S^-1 = P P^T."""
    inverse: Any = solve_triangular(np.linalg.cholesky(covariance), np.eye(len(covariance)), lower=True)
    return np.asarray(inverse.T)


def _expectation(rows: Rows, components: _Components, likely: NDArray[np.intp]) -> tuple[Floats, float]:
    """Shares (N, K), and the mean log-likelihood but for a constant. likely: (N,), the largest share before."""
    n, k = len(rows), len(components.weights)
    joint = np.full((n, k), -np.inf)
    for i in range(k):
        own = likely == i
        joint[own, i] = _log_densities(rows[own], components, i, np.full(int(own.sum()), -np.inf))
    least = joint.max(axis=1) - CUTOFF
    for i in range(k):
        found = _log_densities(rows, components, i, np.where(likely == i, np.inf, least))
        joint[:, i] = np.maximum(joint[:, i], found)
    top = joint.max(axis=1, keepdims=True)
    shares = np.exp(joint - top)
    sums = shares.sum(axis=1, keepdims=True)
    return shares / sums, float((top + np.log(sums)).mean())


def _log_densities(rows: Rows, components: _Components, i: int, least: Floats) -> Floats:
    """log w N(y; m, S) of each row (N, D) by component i, but for a constant; -inf where it is below least (N,)."""
    factor, constant = components.factors[i], components.constants[i]
    centre = components.means[i].astype(np.float32) @ factor
    found = np.full(len(rows), constant)
    alive = np.arange(len(rows))
    for start in range(0, len(factor), BLOCK):
        end = start + BLOCK
        z = rows[:, :end] @ factor[:end, start:end] - centre[start:end]
        found[alive] -= 0.5 * np.einsum("nd,nd->n", z, z)
        kept = found[alive] >= least[alive]
        if kept.mean() < 0.8:  # or the copy would cost more than it spares
            alive, rows = alive[kept], rows[kept]
        if not len(alive):
            break
    return np.where(found >= least, found, -np.inf)
