"""The head of the known channel: from features to a score and its p-value, and the memory that it learnt from.

A logistic regression on features gives the score, `calibration.Conditional` takes out what the picture's delivery
explains, and a split-conformal p-value on photographs says how rare such a score is. The features of every face
that the regression learnt from travel with it, the pictures do not: so that `lensborn teach` can add a generator
without forgetting the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lensborn.calibration import Conditional, Conformal

LEARN, ADJUST, CALIBRATE = 0, 1, 2  # what a remembered face serves for
PENALTY = 1.0  # of the logistic regression, on standardised features (scikit-learn's 1 / C)

Features = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Memory:
    """The faces that a channel knows, as features: a row a face as it was delivered once.

    `features` (M, D) float16; `traits` (M, T) float16; `sets` (M,): index into `names`; `uses` (M,): LEARN, ADJUST
    or CALIBRATE. `generated` (len(names),): which sets are generated.
    """

    features: Features
    traits: Features
    sets: npt.NDArray[np.int32]
    uses: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    generated: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        rows = {len(self.features), len(self.traits), len(self.sets), len(self.uses)}
        if len(rows) > 1 or self.features.ndim != 2 or self.traits.ndim != 2:
            raise ValueError("the parts of a memory must have one row a face")
        if len(self.names) != len(self.generated) or len(set(self.names)) != len(self.names):
            raise ValueError("the sets of a memory must have different names")
        if self.sets.size and not (self.sets.min() >= 0 and self.sets.max() < len(self.names)):
            raise ValueError("a memory holds faces of a set that it does not name")
        if not (np.isfinite(self.features).all() and np.isfinite(self.traits).all()):
            raise ValueError("a memory holds features that are not finite")

    def add(
        self, name: str, generated: bool, features: npt.ArrayLike, traits: npt.ArrayLike, uses: npt.ArrayLike
    ) -> "Memory":
        """With more faces, of a new set or a known one; ValueError where that is of the other class."""
        names, kinds = self.names, self.generated
        if name in names and kinds[names.index(name)] != generated:
            raise ValueError(f"{name} is known as the other class: give the set another name")
        if name not in names:
            names, kinds = (*names, name), np.append(kinds, generated)
        rows = np.asarray(uses, dtype=np.uint8)
        return Memory(
            np.concatenate([self.features, np.asarray(features, dtype=np.float16)]),
            np.concatenate([self.traits, np.asarray(traits, dtype=np.float16)]),
            np.concatenate([self.sets, np.full(len(rows), names.index(name), dtype=np.int32)]),
            np.concatenate([self.uses, rows]),
            names,
            kinds,
        )

    @classmethod
    def empty(cls, feature_dim: int, n_traits: int) -> "Memory":
        """A memory of nothing."""
        return cls(
            np.zeros((0, feature_dim), np.float16),
            np.zeros((0, n_traits), np.float16),
            np.zeros(0, np.int32),
            np.zeros(0, np.uint8),
            (),
            np.zeros(0, bool),
        )


@dataclass(frozen=True, eq=False)
class KnownHead:
    """From features to score and p-value, with the memory that it was learnt from.

    `weights` (D,) and `bias`: a logistic regression, generated is positive.
    """

    weights: Floats
    bias: float
    conditional: Conditional
    conformal: Conformal
    memory: Memory

    def __post_init__(self) -> None:
        if self.weights.shape != (self.memory.features.shape[1],) or not np.isfinite(self.weights).all():
            raise ValueError("the weights of the known channel do not fit its features")
        if self.conditional.mean.size != self.memory.traits.shape[1]:
            raise ValueError("the regression of the known channel does not fit its traits")

    @classmethod
    def learn(cls, memory: Memory) -> Self:
        """Fit everything to a memory. ValueError where a part of it has no faces for its use."""
        generated = memory.generated[memory.sets]
        learn = memory.uses == LEARN
        for mask, what in (
            (learn & generated, "generated faces to learn from"),
            (learn & ~generated, "photographs to learn from"),
            (memory.uses == ADJUST, "photographs to learn deliveries from"),
            (memory.uses == CALIBRATE, "photographs to calibrate on"),
        ):
            if not mask.any():
                raise ValueError(f"no {what}: add pictures")
        features = memory.features.astype(np.float64)
        weights, bias = _logistic(
            features[learn], generated[learn], balance(memory.sets[learn], generated[learn])
        )
        scores = features @ weights + bias
        adjust, calibrate = memory.uses == ADJUST, memory.uses == CALIBRATE
        traits = memory.traits.astype(np.float64)
        conditional = Conditional.fit(scores[adjust], traits[adjust])
        conformal = Conformal.fit(conditional.standardise(scores[calibrate], traits[calibrate]))
        return cls(weights, bias, conditional, conformal, memory)

    def score(self, features: npt.ArrayLike, traits: npt.ArrayLike) -> Floats:
        """Scores (N,) of features (N, D) and traits (N, T), given the delivery; higher = more like generated."""
        logits = np.asarray(features, dtype=np.float64) @ self.weights + self.bias
        return self.conditional.standardise(logits, traits)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the names of the sets, for safetensors; `from_arrays` reads it."""
        return {
            "weights": self.weights,
            "bias": np.array([self.bias]),
            "conditional.mean": self.conditional.mean,
            "conditional.deviation": self.conditional.deviation,
            "conditional.location": self.conditional.location,
            "conditional.scale": self.conditional.scale,
            "calibration": self.conformal.scores,
            "memory.features": self.memory.features,
            "memory.traits": self.memory.traits,
            "memory.sets": self.memory.sets,
            "memory.uses": self.memory.uses,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], sets: Mapping[str, bool]) -> Self:
        """Read what `to_arrays` gave; `sets`: which of the named sets are generated. ValueError where malformed."""
        doubles = ("weights", "bias", "calibration", *(f"conditional.{name}" for name in _CONDITIONAL))
        kinds: dict[str, type] = dict.fromkeys(doubles, np.float64)
        kinds |= {"memory.features": np.float16, "memory.traits": np.float16}
        kinds |= {"memory.sets": np.int32, "memory.uses": np.uint8}
        for name, kind in kinds.items():
            if name not in arrays or arrays[name].dtype != kind:
                raise ValueError(f"the known channel lacks {name} as {np.dtype(kind)}")
        if arrays["bias"].shape != (1,) or not np.isfinite(arrays["bias"]).all():
            raise ValueError("the bias of the known channel must be one finite number")
        memory = Memory(
            arrays["memory.features"],
            arrays["memory.traits"],
            arrays["memory.sets"],
            arrays["memory.uses"],
            tuple(sets),
            np.array(list(sets.values()), dtype=bool),
        )
        conditional = Conditional(*(arrays[f"conditional.{name}"] for name in _CONDITIONAL))
        conformal = Conformal(arrays["calibration"])
        return cls(arrays["weights"], float(arrays["bias"][0]), conditional, conformal, memory)


_CONDITIONAL = ("mean", "deviation", "location", "scale")


def balance(sets: npt.NDArray[np.int32], generated: npt.NDArray[np.bool_]) -> Floats:
    """Weights (N,) of mean 1 under which both classes weigh the same, and so do the sets of each class."""
    weights = np.zeros(len(sets))
    for kind in (False, True):
        names = np.unique(sets[generated == kind])
        for name in names:
            mine = (sets == name) & (generated == kind)
            weights[mine] = 1 / (mine.sum() * len(names))
    return np.asarray(weights * (len(sets) / weights.sum()))


def _logistic(features: Floats, labels: npt.NDArray[np.bool_], weights: Floats) -> tuple[Floats, float]:
    """Coefficients and constant, in the units of the features."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - detection does not learn

    mean, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    model = LogisticRegression(C=1 / PENALTY, max_iter=2000)
    model.fit((features - mean) / deviation, labels, sample_weight=weights)
    coefficients = model.coef_[0] / deviation
    return coefficients, float(model.intercept_[0] - coefficients @ mean)
