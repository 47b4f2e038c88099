"""The head of the known channel: from features to a score and its p-value, with the memory that it learnt from.

What `signs` make of the features is the score, in calibrated log odds. Its p-value is split-conformal on
several populations of photographs, and the largest of theirs: what is rare must be rare among all of them, so that
the faces of one publisher are not flagged for what sets them apart from the photographs of another (a Mondrian
calibration whose stratum is not known; Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005,
section 4.5). Both channels together are judged by the sum of their scores, measured as signs are, and calibrated as
a whole, with a margin for photographs of populations that are not among those calibrated on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lensborn.calibration import FaceConformal
from lensborn.memory import CALIBRATE, LEARN, Memory
from lensborn.signs import Regression, Scale, Signs, balance
from lensborn.strangeness import Strangeness

MARGIN = 0.25  # by which photographs of a population that is not known may look stranger; see docs/known.md
CHECKED = 16  # kept scores, about, that are made again when a channel is read

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class KnownHead:
    """From features to score and p-value, with the memory that it was learnt from.

    Features (N, D + F) are those of the known channel's network, then those of the first channel's. `signs` in
    them, and the `scale` that measures these. `platt` (2,): stretch and shift that make the greatest log odds.
    `calibration` (m,): the scores of the m rows of the memory that calibrate, in order, kept since making them
    takes longer than all else before the first verdict. `margin`, 0 or more: see `fused_p`. Raises ValueError
    where they do not fit the memory.
    """

    signs: Signs
    scale: Scale
    platt: Floats
    memory: Memory
    calibration: Floats
    margin: float = MARGIN

    def __post_init__(self) -> None:
        dim, taught = self.memory.features.shape[1], int(self.memory.taught.sum())
        if self.dim > dim or any(one.weights.shape != (dim,) for one in self.signs.taught):
            raise ValueError("the weights of the known channel do not fit the features that it remembers")
        if not len(self.signs.taught) == len(self.scale.kin) == taught:
            raise ValueError(
                "the known channel has not as many weights and levels as generators it was taught"
            )
        if self.platt.shape != (2,):
            raise ValueError("the known channel's log odds are malformed")
        calibrate = np.flatnonzero(self.memory.rows(CALIBRATE))
        if self.calibration.shape != calibrate.shape:
            raise ValueError("the known channel must have one score for each row that calibrates")
        if not np.isfinite(np.append(self.platt, self.calibration)).all() or not self.platt[0] > 0:
            raise ValueError("the known channel's log odds or scores are out of range")
        if not 0 <= self.margin < np.inf:
            raise ValueError("the known channel's margin is out of range")
        some = slice(None, None, 1 + len(self.calibration) // CHECKED)
        with np.errstate(over="ignore", invalid="ignore"):  # weights of strangers
            again = self.score(self.memory.values(calibrate[some]))
        if not np.allclose(again, self.calibration[some], rtol=1e-6, atol=1e-6):
            raise ValueError("the known channel does not give the faces that it remembers the scores it kept")
        # raises where there is nothing to calibrate on, or a sum of scores is not finite
        _ = self.conformals, self.fused_conformals

    @property
    def dim(self) -> int:
        """Number of features of the known channel's network."""
        return self.signs.dim

    @classmethod
    def blank(cls, dim: int, first_dim: int) -> Self:
        """A head that tells nothing apart, for a channel that is to look before it has learnt.

        `dim`, `first_dim`: how many features its network gives, and the first channel's.
        """
        face, nothing = np.zeros((1, dim + first_dim)), np.zeros(dim)
        memory = Memory.empty(face).add("nothing", False, face[None], [[0.0]], CALIBRATE)
        signs = Signs(Regression(nothing, 0.0), Strangeness(nothing, np.eye(dim, dtype=np.float32)), ())
        return cls(signs, Scale.blank(), np.array([1.0, 0.0]), memory, np.zeros(1))

    @classmethod
    def learn(cls, memory: Memory, dim: int, margin: float = MARGIN) -> Self:
        """Fit to a memory, the first `dim` features of which are the known channel's: signs to what is to be learnt
        from; measured on photographs that calibrate, and made log odds on all that do (see `platt`), where there
        are generated faces among that.

        ValueError where a class is missing.
        """
        calibrate, learn = memory.rows(CALIBRATE), memory.rows(LEARN)
        labels = memory.positive[calibrate]
        memory.populations()  # raises where there are no photographs to calibrate on
        signs = Signs.learn(memory, dim)
        found = signs.of(memory.values(calibrate))
        weights = balance(memory.sets[calibrate], labels)
        scale = Scale.fit(
            found[~labels],
            memory.unusual[calibrate][~labels],
            weights[~labels],
            [signs.alike.of(memory.values(learn & lesson, slice(dim))) for lesson in memory.lessons()],
        )
        greatest = scale.greatest(found)
        log_odds = (1.0, 0.0)
        if labels.any():
            log_odds = platt(greatest, labels, weights)
            if log_odds[0] <= 0:
                raise ValueError(
                    "generated faces kept apart look less so than photographs: add other pictures"
                )
        stretch, shift = log_odds
        return cls(signs, scale, np.array(log_odds), memory, greatest * stretch + shift, margin)

    def score(self, features: npt.ArrayLike) -> Floats:
        """Log odds (N,) of features (N, D + F), at equal numbers of both classes; higher = more like generated."""
        stretch, shift = self.platt
        return np.asarray(self.scale.greatest(self.signs.of(features)) * stretch + shift)

    def fused(self, scores: npt.ArrayLike, unusual: npt.ArrayLike) -> Floats:
        """Both channels' evidence (N,): the greatest of the signs behind scores (N,), and the first channel's
        scores `unusual` (N,), measured as signs are, added."""
        stretch, shift = self.platt
        greater = (np.asarray(scores, dtype=np.float64) - shift) / stretch
        return np.asarray(greater + self.scale.first(unusual))

    def fused_p(self, scores: npt.ArrayLike, unusual: npt.ArrayLike) -> Floats:
        """p of both channels' scores (N,) together, calibrated as a whole; as `p_values` of one, but less the
        margin, by which photographs of a population that is not among those calibrated on may look stranger."""
        return _largest_p(self.fused_conformals, self.fused(scores, unusual) - self.margin)

    def p_values(self, scores: npt.ArrayLike) -> Floats:
        """p of scores (N,), the largest over the populations; in 1 / (m + 1) .. 1, m the faces of the smallest."""
        return _largest_p(self.conformals, scores)

    def threshold(self, alpha: float) -> float:
        """The score above which p <= alpha, exactly; infinity where a population is too small for that."""
        return max(conformal.threshold(alpha) for conformal in self.conformals.values())

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that the smallest population allows."""
        return max(conformal.smallest_p for conformal in self.conformals.values())

    @cached_property
    def conformals(self) -> dict[str, FaceConformal]:
        """The calibration of each population, by the score."""
        return self._calibrated(self._scores, self.memory.populations())

    @cached_property
    def fused_conformals(self) -> dict[str, FaceConformal]:
        """The calibration of each population, by both channels' evidence; and of its faces as they are alone, which
        look stranger to the first channel than when they were handed on."""
        populations = self.memory.populations()
        plain = {f"{name}, as they are": rows[self.memory.first[rows]] for name, rows in populations.items()}
        with np.errstate(over="ignore", invalid="ignore"):  # weights of strangers
            evidence = self.fused(self._scores, self.memory.unusual)
        return self._calibrated(evidence, {**populations, **plain})

    @cached_property
    def _scores(self) -> Floats:
        """Scores (M,) of the rows that calibrate; NaN of the others."""
        rows = self.memory.rows(CALIBRATE)
        scores = np.full(len(rows), np.nan)
        scores[rows] = self.calibration
        return scores

    def _calibrated(
        self, scores: Floats, populations: Mapping[str, npt.NDArray[np.intp]]
    ) -> dict[str, FaceConformal]:
        return {
            name: FaceConformal.fit(scores[rows], self.memory.faces[rows])
            for name, rows in populations.items()
        }

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the names of the sets, for safetensors; `from_arrays` reads it."""
        taught, dim = self.signs.taught, self.memory.features.shape[1]
        return {
            "weights": self.signs.alike.weights,
            "bias": np.array([self.signs.alike.bias]),
            "centre": self.signs.strangeness.centre,
            "whitening": self.signs.strangeness.whitening,
            "taught_weights": np.array([one.weights for one in taught]).reshape(len(taught), dim),
            "taught_bias": np.array([one.bias for one in taught]),
            "levels": self.scale.levels,
            "kin": self.scale.kin,
            "taught_levels": self.scale.taught,
            "platt": self.platt,
            "calibration": self.calibration,
            "margin": np.array([self.margin]),
            **{name: getattr(self.memory, name) for name in _REMEMBERED},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], sets: Mapping[str, bool]) -> Self:
        """Read what `to_arrays` gave; `sets`: which of the named sets are generated. ValueError where malformed."""
        arrays = {"margin": np.zeros(1), **arrays}  # bundles of before lensborn-9 have none
        for name, (kind, dimensions) in _ARRAYS.items():
            if name not in arrays or arrays[name].dtype != kind or arrays[name].ndim != dimensions:
                raise ValueError(
                    f"the known channel lacks {name} as {np.dtype(kind)} of {dimensions} dimensions"
                )
        generated = np.array(list(sets.values()), dtype=np.bool_)
        memory = Memory(
            **{name: arrays[name] for name in _REMEMBERED}, names=tuple(sets), generated=generated
        )
        single = all(arrays[name].shape == (1,) for name in ("bias", "margin"))
        if not single or len(arrays["taught_weights"]) != len(arrays["taught_bias"]):
            raise ValueError("the known channel's weights are malformed")
        signs = Signs(
            Regression(arrays["weights"], float(arrays["bias"][0])),
            Strangeness(arrays["centre"], arrays["whitening"]),
            tuple(map(Regression, arrays["taught_weights"], arrays["taught_bias"].tolist())),
        )
        scale = Scale(arrays["levels"], arrays["kin"], arrays["taught_levels"])
        return cls(signs, scale, arrays["platt"], memory, arrays["calibration"], float(arrays["margin"][0]))


_REMEMBERED = ("features", "grid", "unusual", "faces", "sets", "uses", "taught")
_ARRAYS: Mapping[str, tuple[type, int]] = {
    "weights": (np.float64, 1),
    "bias": (np.float64, 1),
    "centre": (np.float64, 1),
    "whitening": (np.float32, 2),
    "taught_weights": (np.float64, 2),
    "taught_bias": (np.float64, 1),
    "levels": (np.float64, 2),
    "kin": (np.bool_, 1),
    "taught_levels": (np.float64, 3),
    "platt": (np.float64, 1),
    "calibration": (np.float64, 1),
    "margin": (np.float64, 1),
    "features": (np.uint8, 2),
    "grid": (np.float64, 2),
    "unusual": (np.float32, 1),
    "faces": (np.int32, 1),
    "sets": (np.int32, 1),
    "uses": (np.uint8, 1),
    "taught": (np.bool_, 1),
}


def _largest_p(populations: Mapping[str, FaceConformal], scores: npt.ArrayLike) -> Floats:
    """p of scores (N,), the largest over the populations."""
    each = [conformal.p_values(scores) for conformal in populations.values()]
    return np.asarray(np.max(each, axis=0), dtype=np.float64)


def platt(scores: Floats, positive: npt.NDArray[np.bool_], weights: Floats) -> tuple[float, float]:
    """Stretch and shift that make scores (N,) log odds of `positive` (N,), under weights (N,).

    Source: Platt, "Probabilistic outputs for support vector machines" (1999), with his smoothed targets, so that
    they stay finite where the scores tell all of them apart. A target t is a face that is generated with the weight
    t and not with 1 - t.
    """
    n_positive, n_negative = positive.sum(), (~positive).sum()
    targets = np.where(positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    twice = np.concatenate([scores, scores])[:, None]
    labels = np.repeat([True, False], len(scores))
    weights = np.concatenate([weights * targets, weights * (1 - targets)])
    line = Regression.fit(twice, labels, weights, penalty=0.0)
    return float(line.weights[0]), line.bias
