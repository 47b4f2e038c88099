"""The head of the known channel: from features to a score and its p-value, and the memory that it learnt from.

A logistic regression on features gives the score, in calibrated log odds. Its p-value is split-conformal on several
populations of photographs, and the largest of theirs: what is rare must be rare among all of them, so that the
faces of one publisher are not flagged for what sets them apart from the photographs of another (a Mondrian
calibration whose stratum is not known; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005,
section 4.5).

The features of every face that the regression learnt from travel with it, the pictures do not: so that
`lensborn teach` can add a generator without forgetting the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lensborn.calibration import Conformal

LEARN, CALIBRATE = 0, 1  # what a remembered face serves for
PENALTY = 1.0  # of the logistic regression, on standardised features (scikit-learn's 1 / C)
LEAST_POPULATION = 60  # faces to calibrate on; smaller populations join the largest

Features = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Memory:
    """The faces that a channel knows, as features: a row a face as it was delivered once.

    `features` (M, D) float16; `sets` (M,): index into `names`; `uses` (M,): LEARN or CALIBRATE; `generated`
    (len(names),): which sets are generated. Raises ValueError where these do not fit each other.
    """

    features: Features
    sets: npt.NDArray[np.int32]
    uses: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    generated: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        rows = len(self.features)
        if self.features.ndim != 2 or self.sets.shape != (rows,) or self.uses.shape != (rows,):
            raise ValueError("a memory must have one set and one use for each row of features")
        if len(self.names) != len(self.generated) or len(set(self.names)) != len(self.names):
            raise ValueError("the sets of a memory must have different names")
        if rows and not (self.sets.min() >= 0 and self.sets.max() < len(self.names)):
            raise ValueError("a memory holds faces of a set that it does not name")
        if not np.isin(self.uses, (LEARN, CALIBRATE)).all():
            raise ValueError("a memory holds faces of no use")
        if not np.isfinite(self.features).all():
            raise ValueError("a memory holds features that are not finite")

    @classmethod
    def empty(cls, feature_dim: int) -> Self:
        """A memory of nothing, for features of `feature_dim` numbers."""
        return cls(
            np.zeros((0, feature_dim), np.float16),
            np.zeros(0, np.int32),
            np.zeros(0, np.uint8),
            (),
            np.zeros(0, np.bool_),
        )

    def add(self, name: str, generated: bool, features: npt.ArrayLike, use: int) -> "Memory":
        """With more faces (N, D), of a new set or a known one; ValueError where that is of the other class."""
        names, kinds = self.names, self.generated
        if name in names and kinds[names.index(name)] != generated:
            raise ValueError(f"{name} is known as the other class: give the set another name")
        if name not in names:
            names, kinds = (*names, name), np.append(kinds, generated)
        rows = np.asarray(features, dtype=np.float16)
        return Memory(
            np.concatenate([self.features, rows]),
            np.concatenate([self.sets, np.full(len(rows), names.index(name), dtype=np.int32)]),
            np.concatenate([self.uses, np.full(len(rows), use, dtype=np.uint8)]),
            names,
            kinds,
        )

    def rows(self, use: int) -> npt.NDArray[np.bool_]:
        """Which rows (M,) serve for that."""
        return np.asarray(self.uses == use)

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """Which rows (M,) are of generated faces."""
        return np.asarray(self.generated[self.sets])

    def populations(self) -> dict[str, npt.NDArray[np.bool_]]:
        """The rows (M,) of each population to calibrate on; small ones join the largest, and give it their name."""
        each = {
            name: self.rows(CALIBRATE) & (self.sets == number)
            for number, name in enumerate(self.names)
            if not self.generated[number]
        }
        ordered = sorted(each.items(), key=lambda item: -item[1].sum())
        if not ordered or not ordered[0][1].any():
            raise ValueError("no photographs to calibrate on: add pictures")
        (name, largest), *others = ordered
        small = [(other, rows) for other, rows in others if 0 < rows.sum() < LEAST_POPULATION]
        joined = np.logical_or.reduce([largest, *(rows for _, rows in small)])
        kept = {other: rows for other, rows in others if rows.sum() >= LEAST_POPULATION}
        return {" + ".join([name, *(other for other, _ in small)]): joined, **kept}


@dataclass(frozen=True, eq=False)
class KnownHead:
    """From features to score and p-value, with the memory that it was learnt from.

    `weights` (D,) and `bias`: a logistic regression, generated is positive. Raises ValueError where they do not
    fit the memory.
    """

    weights: Floats
    bias: float
    memory: Memory

    def __post_init__(self) -> None:
        if self.weights.shape != (self.memory.features.shape[1],) or not np.isfinite(self.weights).all():
            raise ValueError("the weights of the known channel do not fit its features")
        if not np.isfinite(self.bias):
            raise ValueError("the bias of the known channel is not finite")
        self.memory.populations()  # raises where there is nothing to calibrate on

    @classmethod
    def learn(cls, memory: Memory) -> Self:
        """Fit to a memory: a regression on what is to be learnt from, its scores then stretched and shifted to be
        log odds on what calibrates (Platt, "Probabilistic outputs for support vector machines", 1999), where there
        are generated faces among that. ValueError where one of the classes is missing.
        """
        learn, positive = memory.rows(LEARN), memory.positive
        for mask, what in (
            (learn & positive, "generated faces"),
            (learn & ~positive, "photographs"),
        ):
            if not mask.any():
                raise ValueError(f"no {what} to learn from: add pictures")
        weights, bias = _logistic(memory, learn, memory.features, PENALTY)
        if (memory.rows(CALIBRATE) & positive).any():
            scores = memory.features.astype(np.float64) @ weights + bias
            stretch, shift = _logistic(memory, memory.rows(CALIBRATE), scores[:, None], 0.0)
            if stretch[0] <= 0:
                raise ValueError(
                    "generated faces kept apart look less so than photographs: add other pictures"
                )
            weights, bias = weights * stretch[0], bias * stretch[0] + shift
        return cls(weights, bias, memory)

    def score(self, features: npt.ArrayLike) -> Floats:
        """Log odds (N,) of features (N, D), at equal numbers of both classes; higher = more like generated."""
        return np.asarray(np.asarray(features, dtype=np.float64) @ self.weights + self.bias)

    def p_values(self, scores: npt.ArrayLike) -> Floats:
        """p of scores (N,): the largest over the populations; in 1 / (n + 1) .. 1 of the smallest population."""
        each = [conformal.p_values(scores) for conformal in self.conformals.values()]
        return np.asarray(np.max(each, axis=0), dtype=np.float64)

    def threshold(self, alpha: float) -> float:
        """The score above which p <= alpha, exactly; infinity where a population is too small for that."""
        return max(conformal.threshold(alpha) for conformal in self.conformals.values())

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that the smallest population allows."""
        return max(1 / (conformal.scores.size + 1) for conformal in self.conformals.values())

    @cached_property
    def conformals(self) -> dict[str, Conformal]:
        """The calibration of each population."""
        scores = self.score(self.memory.features)
        return {name: Conformal.fit(scores[rows]) for name, rows in self.memory.populations().items()}

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the names of the sets, for safetensors; `from_arrays` reads it."""
        return {
            "weights": self.weights,
            "bias": np.array([self.bias]),
            "features": self.memory.features,
            "sets": self.memory.sets,
            "uses": self.memory.uses,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], sets: Mapping[str, bool]) -> Self:
        """Read what `to_arrays` gave; `sets`: which of the named sets are generated. ValueError where malformed."""
        for name, kind in _KINDS.items():
            if name not in arrays or arrays[name].dtype != kind:
                raise ValueError(f"the known channel lacks {name} as {np.dtype(kind)}")
        if arrays["bias"].shape != (1,):
            raise ValueError("the bias of the known channel must be one number")
        generated = np.array(list(sets.values()), dtype=np.bool_)
        memory = Memory(arrays["features"], arrays["sets"], arrays["uses"], tuple(sets), generated)
        return cls(arrays["weights"], float(arrays["bias"][0]), memory)


_KINDS: Mapping[str, type] = {
    "weights": np.float64,
    "bias": np.float64,
    "features": np.float16,
    "sets": np.int32,
    "uses": np.uint8,
}


def balance(sets: npt.NDArray[np.int32], positive: npt.NDArray[np.bool_]) -> Floats:
    """Weights (N,) of mean 1 under which both classes weigh the same, and so do the sets of each class."""
    weights = np.zeros(len(sets))
    for kind in (False, True):
        names = np.unique(sets[positive == kind])
        for name in names:
            mine = (sets == name) & (positive == kind)
            weights[mine] = 1 / (mine.sum() * len(names))
    return np.asarray(weights * (len(sets) / weights.sum()))


def _logistic(
    memory: Memory, rows: npt.NDArray[np.bool_], inputs: npt.NDArray[Any], penalty: float
) -> tuple[Floats, float]:
    """Coefficients (D,) and constant of a balanced regression on some rows of `inputs` (M, D), in their units."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - detection does not learn

    x, labels = inputs[rows].astype(np.float64), memory.positive[rows]
    mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    model = LogisticRegression(C=1 / penalty if penalty else np.inf, tol=1e-8, max_iter=5000)
    model.fit((x - mean) / deviation, labels, sample_weight=balance(memory.sets[rows], labels))
    coefficients = model.coef_[0] / deviation
    return coefficients, float(model.intercept_[0] - coefficients @ mean)
