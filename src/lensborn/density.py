"""Density of photographs' features: a Gaussian mixture, fitted by EM, scored in NumPy.

Source: Zou et al., "Self-supervised learning for detecting AI-generated faces as anomalies" (2025),
section 3. With the feature x taken to y = (x [/ |x|] - offset) [W],

    log p(x) = log sum_k w_k N(y; m_k, S_k)    and    score(x) = -log p(x), in nats: higher = more anomalous.

Each covariance is kept as the factor P_k of its inverse, S_k^-1 = P_k P_k^T, so that scoring is one matrix
product a component. What fits it is imported only then. What is promised and what is not: docs/density.md.
Another score in its place: `contrast`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, Self, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensborn import defaults

if TYPE_CHECKING:
    from lensborn.em import Fitted

Covariance = Literal["full", "tied", "diag"]
Floats = NDArray[np.floating[Any]]

RIDGE = 1e-6  # added to each variance in EM, in units of the data's mean variance
FOLDS = 3  # of the held-out likelihoods that choose the number of components
MAX_STEPS = 200  # of EM
FINITE = float(np.finfo(np.float32).max)  # larger values are taken for infinite, so that no square overflows


class SingularError(ValueError):
    """A covariance has no usable inverse: there is too little data for its dimensions."""


class Density(Protocol):
    """What says how unlike photographs a feature is, and travels in a bundle: `Mixture`, or `contrast.Contrast`."""

    @property
    def n_features(self) -> int:
        """D, the dimension of the features that it takes."""
        ...

    def score(self, features: ArrayLike) -> NDArray[np.float64]:
        """Of features (N, D): (N,), higher = more anomalous."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything but the arrays, JSON-able."""
        ...

    def to_arrays(self) -> dict[str, Floats]:
        """The arrays by name."""
        ...


@dataclass(frozen=True, eq=False)
class Mixture:
    """A fitted mixture of K Gaussians over D-dimensional features, in d <= D dimensions after optional PCA.

    weights: (K,), positive, summing to 1. means: (K, d). offset: (D,), the mean of the fitted features,
    subtracted first. precisions: factors P of the inverse covariances, upper triangular: (K, d, d) full,
    (d, d) tied, (K, d) diag. projection: (D, d) with orthonormal columns, or None. record: how it was fitted,
    JSON-able. Raises ValueError where arrays are not finite or do not fit together.
    """

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    offset: NDArray[np.float64]
    precisions: NDArray[np.float32]  # float32 as is projection: half the bundle; products are float64
    projection: NDArray[np.float32] | None
    covariance: Covariance
    l2_normalise: bool
    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.covariance not in get_args(Covariance):
            raise ValueError(f"covariance must be one of {get_args(Covariance)}, not {self.covariance!r}")
        if not isinstance(self.l2_normalise, bool):
            raise ValueError(f"l2_normalise must be true or false, not {self.l2_normalise!r}")
        if self.means.ndim != 2 or self.offset.ndim != 1 or 0 in self.means.shape + self.offset.shape:
            raise ValueError(
                f"means must be (K, d), offset (D,), not {self.means.shape}, {self.offset.shape}"
            )
        (k, d), wide = self.means.shape, self.n_features
        factors = {"full": (k, d, d), "tied": (d, d), "diag": (k, d)}[self.covariance]
        shapes: dict[str, tuple[int, ...]] = {"weights": (k,), "precisions": factors}
        if self.projection is None and wide != d:
            raise ValueError(f"without a projection offset must be ({d},), as the means are; it is ({wide},)")
        if self.projection is not None:
            shapes["projection"] = (wide, d)
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, not {getattr(self, name).shape}")
        for name, array in self.to_arrays().items():
            if not (np.abs(array) <= FINITE).all():
                raise ValueError(f"{name} holds values that are not finite")
        if (self.weights <= 0).any() or abs(self.weights.sum() - 1) > 1e-3:
            raise ValueError("weights must be positive and sum to 1")
        if (self._diagonals() <= 0).any():
            raise ValueError("the diagonals of the precision factors must be positive")

    @property
    def n_features(self) -> int:
        """D, the dimension of the features that it takes."""
        return int(self.offset.shape[0])

    def log_likelihood(self, features: ArrayLike) -> NDArray[np.float64]:
        """Log-density of each of the features (N, D), in nats: (N,).

        Raises ValueError for another shape or values that are not finite in float32.
        """
        y = _prepare(features, self.l2_normalise, self.n_features) - self.offset
        if self.projection is not None:
            y = y @ self.projection
        joint = self._log_densities(y) + np.log(self.weights)  # (N, K)
        top = joint.max(axis=1, keepdims=True)
        return cast("NDArray[np.float64]", top[:, 0] + np.log(np.exp(joint - top).sum(axis=1)))

    def score(self, features: ArrayLike) -> NDArray[np.float64]:
        """Minus the log-likelihood of features (N, D): (N,), higher = more anomalous."""
        return -self.log_likelihood(features)

    def settings(self) -> dict[str, Any]:
        """Everything but the arrays, JSON-able; `from_arrays` takes it back."""
        return {
            **self.record,
            "covariance": self.covariance,
            "l2_normalise": self.l2_normalise,
            "n_features": self.n_features,
            "n_dims": self.means.shape[1],
            "n_components": self.means.shape[0],
        }

    def to_arrays(self) -> dict[str, Floats]:
        """The arrays by field name; `projection` only where there is one."""
        arrays: dict[str, Floats] = {
            "weights": self.weights,
            "means": self.means,
            "offset": self.offset,
            "precisions": self.precisions,
        }
        return arrays if self.projection is None else {**arrays, "projection": self.projection}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Floats], settings: Mapping[str, Any]) -> Self:
        """The mixture that `to_arrays` and `settings` describe. ValueError where they cannot."""
        wanted = {"weights", "means", "offset", "precisions"}
        if wanted - set(arrays) or set(arrays) - wanted - {"projection"}:
            raise ValueError(f"a mixture has {sorted(wanted)}, maybe projection, not {sorted(arrays)}")
        if any(array.dtype.kind != "f" for array in arrays.values()):
            raise ValueError("the arrays of a mixture must be of floating point")
        mixture = cls(
            weights=arrays["weights"].astype(np.float64),
            means=arrays["means"].astype(np.float64),
            offset=arrays["offset"].astype(np.float64),
            precisions=arrays["precisions"].astype(np.float32),
            projection=arrays["projection"].astype(np.float32) if "projection" in arrays else None,
            covariance=settings.get("covariance", "missing"),
            l2_normalise=settings.get("l2_normalise", "missing"),
            record={key: value for key, value in settings.items() if key not in _DERIVED},
        )
        if mixture.settings() != dict(settings):
            raise ValueError("the settings give other numbers of dimensions or components than the arrays")
        return mixture

    def _log_densities(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """log N(y; m_k, S_k) of each row and component, (N, K)."""
        k, d = self.means.shape
        squares = np.empty((len(y), k))
        for i, mean in enumerate(self.means):
            factor = self.precisions if self.covariance == "tied" else self.precisions[i]
            z = (y - mean) * factor if self.covariance == "diag" else (y - mean) @ factor
            squares[:, i] = np.einsum("nd,nd->n", z, z)
        log_determinants = np.log(self._diagonals(), dtype=np.float64).sum(axis=-1)  # of P: half that of S^-1
        return cast("NDArray[np.float64]", log_determinants - 0.5 * (d * np.log(2 * np.pi) + squares))

    def _diagonals(self) -> NDArray[np.float32]:
        if self.covariance == "diag":
            return self.precisions
        return np.diagonal(self.precisions, axis1=-2, axis2=-1)


_DERIVED = ("covariance", "l2_normalise", "n_features", "n_dims", "n_components")


def fit_mixture(
    features: ArrayLike,
    *,
    n_components: int | Sequence[int] = defaults.N_COMPONENTS,
    covariance: Covariance = "full",
    n_dims: int | None = None,
    shrinkage: float = 0.0,
    l2_normalise: bool = False,
    seed: int = defaults.SEED,
    groups: ArrayLike | None = None,
) -> Mixture:
    """Fit a mixture to the features (N, D) of photographs by EM, in float32 (see `em`).

    n_components: K, or a sequence of them: the K with the highest likelihood on rows held out is taken and
    refitted to all rows; the table stands in `settings()["held_out"]`. groups (N,): rows of one group (a
    photographer, a source) never stand on both sides. n_dims: project on that many principal axes first.
    shrinkage in 0..1: each covariance S becomes (1 - shrinkage) S + shrinkage (trace S / d) I. l2_normalise:
    each feature is divided by its length first.

    Raises ValueError for features or settings that cannot be used, SingularError (a ValueError too) where a
    covariance has no inverse.
    """
    rows = checked(features)
    candidates = [n_components] if isinstance(n_components, int) else list(n_components)
    if not candidates or min(candidates) < 1:
        raise ValueError(f"n_components must be 1 or more, or a sequence of such, not {n_components!r}")
    if covariance not in get_args(Covariance):
        raise ValueError(f"covariance must be one of {get_args(Covariance)}, not {covariance!r}")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must lie in 0..1, not {shrinkage}")
    if n_dims is not None and not 1 <= n_dims <= min(rows.shape[1], len(rows) - 1):
        raise ValueError(f"n_dims must lie in 1..min(N - 1, D) for features {rows.shape}, not {n_dims}")

    def fit(part: NDArray[np.float64], k: int) -> Mixture:
        return _fit(
            part,
            k,
            covariance=covariance,
            n_dims=n_dims,
            shrinkage=shrinkage,
            l2_normalise=l2_normalise,
            seed=seed,
        )

    if len(candidates) == 1:
        return fit(rows, candidates[0])
    folds = _group_folds(len(rows), groups, seed)
    held_out = {k: _held_out_likelihood(fit, rows, folds, k) for k in sorted(set(candidates))}
    usable = {k: value for k, value in held_out.items() if value is not None}
    if not usable:
        _raise_singular(f"whichever of {sorted(held_out)} components, on part of {len(rows)} features")
    mixture = fit(rows, max(usable, key=lambda k: usable[k]))
    table = [{"n_components": k, "log_likelihood": value} for k, value in held_out.items()]
    return Mixture.from_arrays(mixture.to_arrays(), {**mixture.settings(), "held_out": table})


def checked(features: ArrayLike, dims: int | None = None) -> NDArray[np.float64]:
    """Features as (N, D) float64. ValueError for another shape, or another D than `dims`, or what is not finite."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or dims not in (None, x.shape[1]):
        wanted = "D" if dims is None else dims
        raise ValueError(
            f"features must have shape (N, {wanted}), not {x.shape}: use the bundle's own encoder"
        )
    good = (np.abs(x) <= FINITE).all(axis=1)
    if not good.all():
        bad = len(x) - int(good.sum())
        raise ValueError(
            f"{bad} of {len(x)} features hold NaN or infinity: leave them out, or check the encoder"
        )
    return x


def _prepare(features: ArrayLike, l2_normalise: bool, dims: int | None = None) -> NDArray[np.float64]:
    """Features checked, of length 1 where wanted (zeros have no direction and stay)."""
    x = checked(features, dims)
    if not l2_normalise:
        return x
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, 1)


def _fit(
    rows: NDArray[np.float64],
    k: int,
    *,
    covariance: Covariance,
    n_dims: int | None,
    shrinkage: float,
    l2_normalise: bool,
    seed: int,
) -> Mixture:
    if len(rows) < max(k, 2):
        raise ValueError(
            f"{len(rows)} features are too few for {k} components: give more, or take fewer components"
        )
    y = _prepare(rows, l2_normalise)
    offset = y.mean(axis=0)
    y = y - offset  # centred, or float32 would lose the spread beside a large mean
    projection = None if n_dims is None else _principal_axes(y, n_dims)
    if projection is not None:
        y = y @ projection
    mean_variance = float(y.var(axis=0).mean())
    if mean_variance == 0:
        _raise_singular("as all features are equal")
    ridge = max(RIDGE, shrinkage) * mean_variance  # EM itself must be as well posed as its shrunken result
    try:
        found = _maximise(y, k, covariance, ridge, seed)
    except (
        np.linalg.LinAlgError,
        ValueError,
    ) as error:  # scikit-learn's word for a failed Cholesky factorisation
        raise SingularError(_singular(f"with {k} components on {y.shape} features")) from error

    covariances: Floats = found.covariances
    if shrinkage > 0:
        covariances = _shrink(covariances, covariance, ridge, shrinkage)
    return Mixture(
        weights=found.weights,
        means=found.means,
        offset=offset,
        precisions=_precision_factors(covariances, covariance, 2 * RIDGE * mean_variance).astype(np.float32),
        projection=projection,
        covariance=covariance,
        l2_normalise=l2_normalise,
        record={
            "shrinkage": float(shrinkage),
            "seed": int(seed),
            "n_fitted": len(y),
            "converged": found.converged,
            "em_steps": found.steps,
        },
    )


def _maximise(y: NDArray[np.float64], k: int, covariance: Covariance, ridge: float, seed: int) -> "Fitted":
    """EM on centred rows; its covariances include the ridge."""
    from lensborn.em import Fitted, fit_full  # noqa: PLC0415  (half a second that detection need not pay)

    if covariance == "full":
        return fit_full(y, k, ridge=ridge, max_steps=MAX_STEPS, seed=seed)
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    em = GaussianMixture(
        k, covariance_type=covariance, reg_covar=ridge, max_iter=MAX_STEPS, random_state=seed
    )
    em.fit(y.astype(np.float32))
    weights, means, covariances = (a.astype(float) for a in (em.weights_, em.means_, em.covariances_))
    return Fitted(weights, means, covariances, bool(em.converged_), int(em.n_iter_))


def _principal_axes(centred: NDArray[np.float64], n_dims: int) -> NDArray[np.float32]:
    """The n_dims axes of greatest variance of rows (N, D), as columns (D, n_dims), greatest first."""
    _, axes = np.linalg.eigh(centred.T @ centred)
    return axes[:, : -n_dims - 1 : -1].astype(np.float32)


def _shrink(covariances: Floats, covariance: Covariance, ridge: float, shrinkage: float) -> Floats:
    """(1 - s) S + s (trace S / d) I of each S, where the covariances given are S + ridge I."""
    if covariance == "diag":
        own = covariances - ridge
        return np.asarray((1 - shrinkage) * own + shrinkage * own.mean(axis=-1, keepdims=True))
    identity = np.eye(covariances.shape[-1])
    own = covariances - ridge * identity
    mean_variances = np.trace(own, axis1=-2, axis2=-1)[..., None, None] / len(identity)
    return np.asarray((1 - shrinkage) * own + shrinkage * mean_variances * identity)


def _precision_factors(covariances: Floats, covariance: Covariance, floor: float) -> Floats:
    """Upper triangular P with S^-1 = P P^T of each S. SingularError where a variance is at most floor."""
    smallest = covariances if covariance == "diag" else np.linalg.eigvalsh(covariances)
    if smallest.min() <= floor:
        _raise_singular("as some direction has no variance of its own")
    if covariance == "diag":
        return np.asarray(1 / np.sqrt(covariances))
    return np.triu(np.swapaxes(np.linalg.inv(np.linalg.cholesky(covariances)), -2, -1))


def _singular(why: str) -> str:
    return (
        f"a covariance is singular, {why}: set n_dims (PCA) lower, shrinkage higher (0.1, say), take fewer "
        "components, covariance 'tied' or 'diag', or give more photographs"
    )


def _raise_singular(why: str) -> NoReturn:
    raise SingularError(_singular(why))


def _group_folds(
    n: int, groups: ArrayLike | None, seed: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to fit and rows held out, FOLDS times; no group on both sides. Without groups each row is one."""
    keys = np.arange(n) if groups is None else np.asarray(groups)
    if keys.shape != (n,):
        raise ValueError(f"groups must have shape ({n},), one for each feature, not {keys.shape}")
    names, group = np.unique(keys, return_inverse=True)
    if len(names) < FOLDS:
        raise ValueError(f"choosing n_components needs {FOLDS} groups: give a single number, or more sources")
    # at random, as the order of rows may repeat (every third of one kind)
    fold = (np.random.default_rng(seed).permutation(len(names)) % FOLDS)[group]
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(FOLDS)]


def _held_out_likelihood(
    fit: Callable[[NDArray[np.float64], int], Mixture],
    rows: NDArray[np.float64],
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    k: int,
) -> float | None:
    """Mean log-likelihood of rows held out, each row once; None where k components cannot be fitted."""
    try:
        values = [fit(rows[inside], k).log_likelihood(rows[outside]) for inside, outside in folds]
        return float(np.concatenate(values).mean())
    except SingularError:
        return None
