"""The head of the known channel: from features to a score and its p-value, and the memory that it learnt from.

Two things speak for a generated face: that it is like those that were shown, by a logistic regression on features,
and that it is unlike all photographs (`strangeness`), as a face from a generator of another kind may be. Generators
that were taught later have regressions of their own: in one with the others, those that differ from them spoil what
was known. Each is measured in deviations of photographs kept apart: strangeness with a handicap, as it finds less
where both could; those taught, too, as each is one more reason to flag a photograph, at the cost of the others. The
greatest is the score, in calibrated log odds.
Its p-value is split-conformal on several populations of photographs, and the largest of theirs: what is rare must
be rare among all of them, so that the faces of one publisher are not flagged for what sets them apart from the
photographs of another (a Mondrian calibration whose stratum is not known; Vovk, Gammerman and Shafer, "Algorithmic
Learning in a Random World", 2005, section 4.5). Both channels together are judged by the sum of their scores, in
deviations of photographs, calibrated in the same way as a whole.

The features of every face that the regressions learnt from travel with them, and what the first channel makes of
it; the pictures do not: so that `lensborn teach` can add a generator without forgetting the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from lensborn.calibration import FaceConformal
from lensborn.strangeness import Strangeness

LEARN, CALIBRATE = 0, 1  # what a remembered face serves for
PENALTY = 10.0  # of the logistic regression, on standardised features (scikit-learn's 1 / C)
HANDICAP = 1.0  # deviations by which a face must be more unlike photographs than like generated ones
TAUGHT_HANDICAP = 0.5  # likewise, more like those of a taught generator than like the others
CHECKED = 16  # kept scores, about, that are made again when a channel is read
LEAST_POPULATION = 60  # faces to calibrate on; smaller populations join the largest

Features = npt.NDArray[np.float16]
Numbers = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Memory:
    """The faces that a channel knows, as features: a row a face as it was delivered once.

    `features` (M, D) float16; `unusual` (M,) float32: the first channel's score of the same; `faces` (M,): the
    number of the face, from 0, its rows one after the other; `sets` (M,): index into `names`; `uses` (M,):
    LEARN or CALIBRATE; `generated` (len(names),): which sets are generated; `taught` (len(names),): which of them
    have a regression of their own. Raises ValueError where these do not fit each other.
    """

    features: Features
    unusual: npt.NDArray[np.float32]
    faces: Numbers
    sets: Numbers
    uses: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    generated: npt.NDArray[np.bool_]
    taught: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        shapes = {self.unusual.shape, self.faces.shape, self.sets.shape, self.uses.shape}
        if self.features.ndim != 2 or shapes != {self.features.shape[:1]}:
            raise ValueError("a memory must have one score, face, set and use for each row of features")
        rows = len(self.features)
        named = (len(self.names),)
        if {self.generated.shape, self.taught.shape} != {named} or len(set(self.names)) != len(self.names):
            raise ValueError("the sets of a memory must have different names")
        if (self.taught & ~self.generated).any():
            raise ValueError("photographs of a memory cannot have a regression of their own")
        if rows and not (self.sets.min() >= 0 and self.sets.max() < len(self.names)):
            raise ValueError("a memory holds faces of a set that it does not name")
        if not np.isin(self.uses, (LEARN, CALIBRATE)).all():
            raise ValueError("a memory holds faces of no use")
        if not (np.isfinite(self.features).all() and np.isfinite(self.unusual).all()):
            raise ValueError("a memory holds features or scores that are not finite")
        if rows and (self.faces[0] != 0 or not np.isin(np.diff(self.faces), (0, 1)).all()):
            raise ValueError("the faces of a memory must be numbered one after the other")

    @classmethod
    def empty(cls, feature_dim: int) -> Self:
        """A memory of nothing, for features of `feature_dim` numbers."""
        numbers = np.zeros(0, np.int32)
        return cls(
            np.zeros((0, feature_dim), np.float16),
            np.zeros(0, np.float32),
            numbers,
            numbers,
            np.zeros(0, np.uint8),
            (),
            np.zeros(0, np.bool_),
            np.zeros(0, np.bool_),
        )

    def add(
        self,
        name: str,
        generated: bool,
        features: npt.ArrayLike,
        unusual: npt.ArrayLike,
        use: int,
        *,
        taught: bool = False,
    ) -> "Memory":
        """With more faces (N, K, D), each delivered K times, of a new set or a known one.

        `unusual`: (N, K), the first channel's scores of the same. `taught`: a new generated set gets a regression
        of its own; a known one stays what it is.

        Raises ValueError where the set is known as one of the other class.
        """
        names, kinds, apart = self.names, self.generated, self.taught
        if name in names and kinds[names.index(name)] != generated:
            raise ValueError(f"{name} is known as the other class: give the set another name")
        if name not in names:
            names, kinds, apart = (*names, name), np.append(kinds, generated), np.append(apart, taught)
        more = np.asarray(features, dtype=np.float16)
        n, deliveries, dim = more.shape
        faces = np.repeat(np.arange(n, dtype=np.int32) + self.n_faces, deliveries)
        return Memory(
            np.concatenate([self.features, more.reshape(-1, dim)]),
            np.concatenate([self.unusual, np.asarray(unusual, dtype=np.float32).reshape(-1)]),
            np.concatenate([self.faces, faces]),
            np.concatenate([self.sets, np.full(len(faces), names.index(name), dtype=np.int32)]),
            np.concatenate([self.uses, np.full(len(faces), use, dtype=np.uint8)]),
            names,
            kinds,
            apart,
        )

    @property
    def n_faces(self) -> int:
        """Number of faces."""
        return int(self.faces[-1]) + 1 if len(self.faces) else 0

    def rows(self, use: int) -> npt.NDArray[np.bool_]:
        """Which rows (M,) serve for that."""
        return np.asarray(self.uses == use)

    @property
    def first(self) -> npt.NDArray[np.bool_]:
        """Which rows (M,) are the first of their face; of those that calibrate, the face as it is."""
        return np.diff(self.faces, prepend=-1) > 0

    @property
    def positive(self) -> npt.NDArray[np.bool_]:
        """Which rows (M,) are of generated faces."""
        return np.asarray(self.generated[self.sets])

    def lessons(self) -> list[npt.NDArray[np.bool_]]:
        """The generated rows (M,) of each regression: all that were not taught, and each set that was."""
        together = self.positive & ~self.taught[self.sets]
        each = [self.sets == number for number in np.flatnonzero(self.taught)]
        return [rows for rows in (together, *each) if rows.any()]

    def populations(self) -> dict[str, npt.NDArray[np.bool_]]:
        """The rows (M,) of each population to calibrate on; small ones join the largest, and give it their name."""
        each = {
            name: self.rows(CALIBRATE) & (self.sets == number)
            for number, name in enumerate(self.names)
            if not self.generated[number]
        }
        sizes = {name: int((rows & self.first).sum()) for name, rows in each.items()}
        ordered = sorted((name for name in each if sizes[name]), key=lambda name: -sizes[name])
        if not ordered:
            raise ValueError("no photographs to calibrate on: add pictures")
        largest = ordered[0]
        small = [name for name in ordered[1:] if sizes[name] < LEAST_POPULATION]
        joined = np.logical_or.reduce([each[name] for name in (largest, *small)])
        kept = {name: each[name] for name in ordered[1:] if sizes[name] >= LEAST_POPULATION}
        return {" + ".join([largest, *small]): joined, **kept}


@dataclass(frozen=True, eq=False)
class KnownHead:
    """From features to score and p-value, with the memory that it was learnt from.

    `weights` (R, D) and `bias` (R,): logistic regressions, generated is positive; see `Memory.lessons`.
    `strangeness`: of photographs. `scale` (R + 2, 2): origin and unit of each of these and of the first channel's
    score, a row each: mean and deviation among photographs, a handicap added to all but the first and the last.
    `platt` (2,): stretch and shift that make the greatest, so measured, log odds. `calibration` (m,): the scores of
    the m rows of the memory that calibrate, in order, kept since making them takes longer than all else before the
    first verdict. Raises ValueError where they do not fit the memory.
    """

    weights: Floats
    bias: Floats
    strangeness: Strangeness
    scale: Floats
    platt: Floats
    memory: Memory
    calibration: Floats

    def __post_init__(self) -> None:
        dim = self.memory.features.shape[1]
        n = max(len(self.memory.lessons()), 1)  # one at least, which of a blank head says nothing
        shapes = (self.weights.shape, self.bias.shape, self.strangeness.centre.shape)
        if shapes != ((n, dim), (n,), (dim,)):
            raise ValueError("the weights of the known channel do not fit its features")
        if self.scale.shape != (n + 2, 2) or self.platt.shape != (2,):
            raise ValueError("the known channel's scale or its log odds are malformed")
        calibrate = np.flatnonzero(self.memory.rows(CALIBRATE))
        if self.calibration.shape != calibrate.shape:
            raise ValueError("the known channel must have one score for each row that calibrates")
        numbers = np.concatenate(
            [self.weights.ravel(), self.bias, self.scale.ravel(), self.platt, self.calibration]
        )
        if not np.isfinite(numbers).all() or not (self.scale[:, 1] > 0).all() or not self.platt[0] > 0:
            raise ValueError("the known channel's weights, scale, log odds or scores are out of range")
        some = slice(None, None, 1 + len(self.calibration) // CHECKED)
        with np.errstate(over="ignore", invalid="ignore"):  # weights of strangers
            again = self.score(self.memory.features[calibrate[some]])
        if not np.allclose(again, self.calibration[some], rtol=1e-6, atol=1e-6):
            raise ValueError("the known channel does not give the faces that it remembers the scores it kept")
        # raises where there is nothing to calibrate on, or a sum of scores is not finite
        _ = self.conformals, self.fused_conformals

    @classmethod
    def blank(cls, feature_dim: int) -> Self:
        """A head that tells nothing apart, for a channel that is to look before it has learnt."""
        memory = Memory.empty(feature_dim)
        memory = memory.add("nothing", False, np.zeros((1, 1, feature_dim)), np.zeros((1, 1)), CALIBRATE)
        strangeness = Strangeness(np.zeros(feature_dim), np.eye(feature_dim))
        scale, platt = np.array([[0.0, 1.0]] * 3), np.array([1.0, 0.0])
        weights, nothing = np.zeros((1, feature_dim)), np.zeros(1)
        return cls(weights, nothing, strangeness, scale, platt, memory, nothing)

    @classmethod
    def learn(cls, memory: Memory) -> Self:
        """Fit to a memory: regressions and strangeness to what is to be learnt from; measured on photographs that
        calibrate, and made log odds on all that do (see `platt`), where there are generated faces among that.

        ValueError where a class is missing.
        """
        learn, calibrate, positive = memory.rows(LEARN), memory.rows(CALIBRATE), memory.positive
        for mask, what in (
            (learn & positive, "generated faces to learn from"),
            (learn & ~positive, "photographs to learn from"),
            (calibrate & ~positive, "photographs to calibrate on"),
        ):
            if not mask.any():
                raise ValueError(f"no {what}: add pictures")
        features = memory.features.astype(np.float64)
        regressions = []
        for lesson in memory.lessons():
            if not (learn & lesson).any():
                raise ValueError("a taught generator has no faces to learn from: add pictures")
            rows = learn & (~positive | lesson)
            weighed = balance(memory.sets[rows], positive[rows])
            regressions.append(_logistic(features[rows], positive[rows], weighed, PENALTY))
        weights, bias = (np.array(part) for part in zip(*regressions, strict=True))
        strangeness = Strangeness.fit(features[learn & ~positive])
        labels = positive[calibrate]
        signs = _signs(features[calibrate], weights, bias, strangeness)
        scores = np.column_stack([signs, memory.unusual[calibrate]])
        balanced = balance(memory.sets[calibrate], labels)
        mean = np.average(scores[~labels], axis=0, weights=balanced[~labels])
        variance = np.average(np.square(scores[~labels] - mean), axis=0, weights=balanced[~labels])
        deviation = np.sqrt(np.maximum(variance, 1e-12))
        handicaps = np.array([0.0, *[TAUGHT_HANDICAP] * (len(bias) - 1), HANDICAP, 0.0])
        scale = np.stack([mean + handicaps * deviation, deviation], axis=1)
        greater = _measured(signs, scale[:-1]).max(axis=1)
        log_odds = (1.0, 0.0)
        if labels.any():
            log_odds = platt(greater, labels, balanced)
            if log_odds[0] <= 0:
                raise ValueError(
                    "generated faces kept apart look less so than photographs: add other pictures"
                )
        stretch, shift = log_odds
        kept = greater * stretch + shift
        return cls(weights, bias, strangeness, scale, np.array(log_odds), memory, kept)

    def score(self, features: npt.ArrayLike) -> Floats:
        """Log odds (N,) of features (N, D), at equal numbers of both classes; higher = more like generated."""
        stretch, shift = self.platt
        return np.asarray(self.signs(features).max(axis=1) * stretch + shift)

    def signs(self, features: npt.ArrayLike) -> Floats:
        """What speaks for generated faces in features (N, D), in deviations of photographs less a handicap: like
        those of each regression, and unlike photographs; (N, R + 1)."""
        return _measured(_signs(features, self.weights, self.bias, self.strangeness), self.scale[:-1])

    def fused(self, scores: npt.ArrayLike, unusual: npt.ArrayLike) -> Floats:
        """Both channels' evidence (N,): the greatest of the signs behind scores (N,), and the first channel's
        scores `unusual` (N,), added in deviations of photographs."""
        stretch, shift = self.platt
        greater = (np.asarray(scores, dtype=np.float64) - shift) / stretch
        origin, unit = self.scale[-1]
        return np.asarray(greater + (np.asarray(unusual, dtype=np.float64) - origin) / unit)

    def fused_p(self, scores: npt.ArrayLike, unusual: npt.ArrayLike) -> Floats:
        """p of both channels' scores (N,) together, calibrated as a whole; as `p_values` of one."""
        return _largest_p(self.fused_conformals, self.fused(scores, unusual))

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
        plain = {f"{name}, as they are": rows & self.memory.first for name, rows in populations.items()}
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
        self, scores: Floats, populations: Mapping[str, npt.NDArray[np.bool_]]
    ) -> dict[str, FaceConformal]:
        return {
            name: FaceConformal.fit(scores[rows], self.memory.faces[rows])
            for name, rows in populations.items()
        }

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but the names of the sets, for safetensors; `from_arrays` reads it."""
        return {
            "weights": self.weights,
            "bias": self.bias,
            "centre": self.strangeness.centre,
            "whitening": self.strangeness.whitening,
            "scale": self.scale,
            "platt": self.platt,
            "calibration": self.calibration,
            "features": self.memory.features,
            "unusual": self.memory.unusual,
            "faces": self.memory.faces,
            "sets": self.memory.sets,
            "uses": self.memory.uses,
            "taught": self.memory.taught,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], sets: Mapping[str, bool]) -> Self:
        """Read what `to_arrays` gave; `sets`: which of the named sets are generated. ValueError where malformed."""
        for name, kind in _KINDS.items():
            if name not in arrays or arrays[name].dtype != kind:
                raise ValueError(f"the known channel lacks {name} as {np.dtype(kind)}")
        generated = np.array(list(sets.values()), dtype=np.bool_)
        memory = Memory(
            **{name: arrays[name] for name in ("features", "unusual", "faces", "sets", "uses", "taught")},
            names=tuple(sets),
            generated=generated,
        )
        if arrays["centre"].ndim != 1:
            raise ValueError("the centre of photographs must have one number a feature")
        return cls(
            arrays["weights"],
            arrays["bias"],
            Strangeness(arrays["centre"], arrays["whitening"]),
            arrays["scale"],
            arrays["platt"],
            memory,
            arrays["calibration"],
        )


_KINDS: Mapping[str, type] = {
    "weights": np.float64,
    "bias": np.float64,
    "centre": np.float64,
    "whitening": np.float64,
    "scale": np.float64,
    "platt": np.float64,
    "calibration": np.float64,
    "features": np.float16,
    "unusual": np.float32,
    "faces": np.int32,
    "sets": np.int32,
    "uses": np.uint8,
    "taught": np.bool_,
}


def _largest_p(populations: Mapping[str, FaceConformal], scores: npt.ArrayLike) -> Floats:
    """p of scores (N,), the largest over the populations."""
    each = [conformal.p_values(scores) for conformal in populations.values()]
    return np.asarray(np.max(each, axis=0), dtype=np.float64)


def _signs(features: npt.ArrayLike, weights: Floats, bias: Floats, strangeness: Strangeness) -> Floats:
    """What speaks for a generated face in features (N, D): like those of each regression, unlike photographs;
    (N, R + 1)."""
    rows = np.asarray(features, dtype=np.float64)
    # row by row: the last bits of a matrix product depend on the number of rows
    alike = [(rows * one).sum(axis=1) + constant for one, constant in zip(weights, bias, strict=True)]
    return np.stack([*alike, strangeness.of(rows)], axis=1)


def _measured(signs: Floats, scale: Floats) -> Floats:
    """Signs (N, R + 1), each from its origin and in its unit, a row of `scale` (R + 1, 2) each."""
    return np.asarray((signs - scale[:, 0]) / scale[:, 1])


def balance(sets: npt.NDArray[np.int32], positive: npt.NDArray[np.bool_]) -> Floats:
    """Weights (N,) of mean 1 under which both classes weigh the same, and so do the sets of each class."""
    weights = np.zeros(len(sets))
    for kind in (False, True):
        names = np.unique(sets[positive == kind])
        for name in names:
            mine = (sets == name) & (positive == kind)
            weights[mine] = 1 / (mine.sum() * len(names))
    return np.asarray(weights * (len(sets) / weights.sum()))


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
    (stretch,), shift = _logistic(
        twice, labels, np.concatenate([weights * targets, weights * (1 - targets)]), 0.0
    )
    return float(stretch), shift


def _logistic(
    x: Floats, labels: npt.NDArray[np.bool_], weights: Floats, penalty: float
) -> tuple[Floats, float]:
    """Coefficients (D,) and constant of a logistic regression on inputs (N, D), in their units."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - detection does not learn

    mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    model = LogisticRegression(C=1 / penalty if penalty else np.inf, tol=1e-8, max_iter=5000)
    model.fit((x - mean) / deviation, labels, sample_weight=weights)
    coefficients = model.coef_[0] / deviation
    return coefficients, float(model.intercept_[0] - coefficients @ mean)
