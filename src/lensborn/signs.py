"""What speaks for a generated face in the known channel's features, and how much of it is rare among photographs.

Two signs: that a face is like those that were shown, by a logistic regression on features, and that it is unlike
all photographs (`strangeness`), as a face from a generator of another kind may be. Each is measured by how rare it
is among photographs kept apart (`normal_scores`), strangeness with a handicap, as it finds less where both could;
the greater counts.

Generators that were taught later have regressions of their own, which see the features of the first channel, too:
in one with the others, those that differ from them would spoil what was known. Where a taught generator's faces are
like those that were shown, before anything learnt from them, it is kin: what its regression says is then added to
the greater of the two signs, in whose place the sum stands. That of one that is not kin would contradict them, and
is one more sign beside them, with a handicap, as each is one more reason to flag a photograph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from lensborn.memory import LEARN, Memory
from lensborn.normal_scores import KNOTS, normal_levels, normal_scores
from lensborn.strangeness import Strangeness

PENALTY = 10.0  # of the logistic regressions, on standardised features (scikit-learn's 1 / C)
HANDICAP = 0.5  # by which a face must be more unlike photographs than like generated ones
TAUGHT_HANDICAP = 0.75  # likewise, more like those of a taught generator that is not kin
KIN = 0.5  # how much, on average, faces of a kin generator are like those shown; photographs' average is 0
ALIKE, STRANGE, TAUGHT = 0, 1, 2  # columns of signs; those of taught generators begin at the last
FIRST = 2  # the row of the first channel's score in a scale's levels, after those of two signs

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Regression:
    """A logistic regression: `weights` (D,) and `bias`; generated is positive. Raises ValueError for other shapes
    and for what is not finite."""

    weights: Floats
    bias: float

    def __post_init__(self) -> None:
        if self.weights.ndim != 1 or not (np.isfinite(self.weights).all() and np.isfinite(self.bias)):
            raise ValueError("the weights of the known channel are malformed or out of range")

    @classmethod
    def fit(cls, features: Floats, labels: npt.NDArray[np.bool_], weights: Floats, penalty: float) -> Self:
        """To features (N, D) and labels (N,) under weights (N,). `penalty`: on the coefficients of standardised
        features, 0 for none."""
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - detection does not learn

        mean, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
        model = LogisticRegression(C=1 / penalty if penalty else np.inf, tol=1e-8, max_iter=5000)
        model.fit((features - mean) / deviation, labels, sample_weight=weights)
        coefficients = model.coef_[0] / deviation
        return cls(coefficients, float(model.intercept_[0] - coefficients @ mean))

    def of(self, features: Floats) -> Floats:
        """Log odds (N,) of features (N, D)."""
        # row by row: the last bits of a matrix product depend on the number of rows
        return np.asarray((features * self.weights).sum(axis=1) + self.bias)


@dataclass(frozen=True, eq=False)
class Signs:
    """From features (N, D + F), those of the known channel's network and then those of the first channel's, to
    signs.

    `alike`: the regression of what was shown, and `strangeness`, of photographs: of the first D. `taught`: the
    regressions of taught generators, of all. Raises ValueError where they do not fit each other.
    """

    alike: Regression
    strangeness: Strangeness
    taught: tuple[Regression, ...]

    def __post_init__(self) -> None:
        if self.alike.weights.shape != self.strangeness.centre.shape:
            raise ValueError("the weights of the known channel do not fit its features")

    @classmethod
    def learn(cls, memory: Memory, dim: int) -> Self:
        """From the rows of a memory that are to be learnt from, the first `dim` features of which are the known
        channel's. ValueError where a class is missing."""
        learn = memory.rows(LEARN)
        for rows, what in (
            (memory.shown, "generated faces"),
            (~memory.positive, "photographs"),
            *((lesson, "faces of a taught generator") for lesson in memory.lessons()),
        ):
            if not (learn & rows).any():
                raise ValueError(f"no {what} to learn from: add pictures")

        def regression(lesson: npt.NDArray[np.bool_], columns: slice) -> Regression:
            rows = learn & (~memory.positive | lesson)
            labels = memory.positive[rows]
            weights = balance(memory.sets[rows], labels)
            return Regression.fit(memory.values(rows, columns), labels, weights, PENALTY)

        own = slice(dim)
        return cls(
            regression(memory.shown, own),
            Strangeness.fit(memory.values(learn & ~memory.positive, own)),
            tuple(regression(lesson, slice(None)) for lesson in memory.lessons()),
        )

    @property
    def dim(self) -> int:
        """Number of features of the known channel's network."""
        return len(self.alike.weights)

    def of(self, features: npt.ArrayLike) -> Floats:
        """Signs (N, 2 + T): like generated faces that were shown, unlike photographs, like those of each taught
        generator; not measured yet. Without taught generators the features (N, D) are enough."""
        rows = np.asarray(features, dtype=np.float64)
        return np.column_stack([self.known(rows[:, : self.dim]), *(one.of(rows) for one in self.taught)])

    def known(self, features: npt.ArrayLike) -> Floats:
        """The first two signs (N, 2) of features (N, D)."""
        rows = np.asarray(features, dtype=np.float64)
        return np.stack([self.alike.of(rows), self.strangeness.of(rows)], axis=1)


@dataclass(frozen=True, eq=False)
class Scale:
    """How signs, and what the first channel says, are measured, and which of them count.

    `levels` (3, Q), see `normal_levels`: of either sign and of the first channel's score. `kin` (T,): whether a
    taught generator is; `taught` (T, 2, Q): the levels of what its regression says, and of that together with what
    was known, which counts where it is kin. Raises ValueError where these do not fit each other.
    """

    levels: Floats
    kin: npt.NDArray[np.bool_]
    taught: Floats

    def __post_init__(self) -> None:
        knots = len(KNOTS)
        if self.levels.shape != (3, knots) or self.taught.shape != (*self.kin.shape, 2, knots):
            raise ValueError("the known channel's levels are malformed")
        for levels in (self.levels, self.taught):
            if not np.isfinite(levels).all() or not (np.diff(levels) > 0).all():
                raise ValueError("the known channel's levels are out of range")

    @classmethod
    def blank(cls) -> Self:
        """One under which every number is its own normal score."""
        return cls(np.stack([KNOTS] * 3), np.zeros(0, np.bool_), np.zeros((0, 2, len(KNOTS))))

    @classmethod
    def fit(
        cls, signs: Floats, first: npt.ArrayLike, weights: Floats, lessons: Sequence[npt.ArrayLike]
    ) -> Self:
        """To signs (N, 2 + T) and first scores (N,) of photographs kept apart, under weights (N,).

        `lessons`: of each taught generator, how much faces of it are like those that were shown, by that
        regression.
        """
        levels = np.stack([normal_levels(one, weights) for one in (*signs.T[:TAUGHT], first)])
        kin = np.array(
            [normal_scores(alike, levels[ALIKE]).mean() > KIN for alike in lessons], dtype=np.bool_
        )
        taught = np.zeros((len(kin), 2, len(KNOTS)))
        known = measured(signs, levels).max(axis=1)
        for pair, sign in zip(taught, signs.T[TAUGHT:], strict=True):
            pair[0] = normal_levels(sign, weights)
            pair[1] = normal_levels(normal_scores(sign, pair[0]) + known, weights)
        return cls(levels, kin, taught)

    def greatest(self, signs: Floats) -> Floats:
        """The greatest (N,) of what counts of signs (N, 2 + T): the first two, or in their place the greater of
        them with what each kin regression says; and the other regressions, less a handicap."""
        known = measured(signs, self.levels).max(axis=1)
        found = [] if self.kin.any() else [known]  # a sum with a kin regression has it already
        for sign, pair, kin in zip(signs.T[TAUGHT:], self.taught, self.kin, strict=True):
            own = normal_scores(sign, pair[0])
            found.append(normal_scores(own + known, pair[1]) if kin else own - TAUGHT_HANDICAP)
        return np.asarray(np.max(found, axis=0))

    def first(self, scores: npt.ArrayLike) -> Floats:
        """The first channel's scores (N,), measured."""
        return normal_scores(scores, self.levels[FIRST])


def measured(signs: Floats, levels: Floats) -> Floats:
    """The first two of signs (N, 2 + T) by the levels of a scale, the second less the handicap: (N, 2)."""
    alike, strange = (normal_scores(signs[:, n], levels[n]) for n in (ALIKE, STRANGE))
    return np.stack([alike, strange - HANDICAP], axis=1)


def balance(sets: npt.NDArray[np.int32], positive: npt.NDArray[np.bool_]) -> Floats:
    """Weights (N,) of mean 1 under which both classes weigh the same, and so do the sets of each class."""
    weights = np.zeros(len(sets))
    for kind in (False, True):
        names = np.unique(sets[positive == kind])
        for name in names:
            mine = (sets == name) & (positive == kind)
            weights[mine] = 1 / (mine.sum() * len(names))
    return np.asarray(weights * (len(sets) / weights.sum()))
