"""The faces that a known channel remembers, as features: what its head learns from, and is calibrated on.

The pictures do not travel with a bundle, but the features of every face do, and what the first channel makes of it,
so that `lensborn teach` can add a generator without forgetting the others. Features are kept in steps of a
sixteenth of a deviation (`Memory.grid`), which takes a byte for each; it moves scores by .04, another delivery by
.7.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

LEARN, CALIBRATE = 0, 1  # what a remembered face serves for
REACH = 8.0  # deviations about the mean that features keep; what lies beyond is kept as that
LEAST_POPULATION = 60  # faces to calibrate on; smaller populations join the largest

Numbers = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Memory:
    """The faces that a channel knows, as features: a row a face as it was delivered once.

    `features` (M, D) uint8, in steps of `grid` (2, D): the lowest and the step of each, see `values`. Those of the
    known channel's network stand first, then those of the first channel's. `unusual` (M,) float32: the first
    channel's score of the same; `faces` (M,): the number of the face, from 0, its rows one after the other; `sets`
    (M,): index into `names`; `uses` (M,): LEARN or CALIBRATE; `generated` (len(names),): which sets are generated;
    `taught` (len(names),): which of them have a regression of their own. Raises ValueError where these do not fit
    each other.
    """

    features: npt.NDArray[np.uint8]
    grid: Floats
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
        if self.grid.shape != (2, self.features.shape[1]):
            raise ValueError("the grid of a memory does not fit its features")
        if not np.isfinite(self.grid).all() or not (self.grid[1] > 0).all():
            raise ValueError("the grid of a memory is out of range")
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
        if not np.isfinite(self.unusual).all():
            raise ValueError("a memory holds scores that are not finite")
        if rows and (self.faces[0] != 0 or not np.isin(np.diff(self.faces), (0, 1)).all()):
            raise ValueError("the faces of a memory must be numbered one after the other")

    @classmethod
    def empty(cls, like: npt.ArrayLike) -> Self:
        """A memory of nothing, for features such as those of photographs, `like` (N, D), N >= 1, finite."""
        rows = np.asarray(like, dtype=np.float64)
        deviation = np.maximum(rows.std(axis=0), 1e-6)
        grid = np.stack([rows.mean(axis=0) - REACH * deviation, 2 * REACH / 255 * deviation])
        numbers = np.zeros(0, np.int32)
        return cls(
            features=np.zeros((0, rows.shape[1]), np.uint8),
            grid=grid,
            unusual=np.zeros(0, np.float32),
            faces=numbers,
            sets=numbers,
            uses=np.zeros(0, np.uint8),
            names=(),
            generated=np.zeros(0, np.bool_),
            taught=np.zeros(0, np.bool_),
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
    ) -> Self:
        """With more faces (N, K, D), each delivered K times, of a new set or a known one.

        `unusual`: (N, K), the first channel's scores of the same. `taught`: a new generated set gets a regression
        of its own; a known one stays what it is.

        Raises ValueError where the set is known as one of the other class, and for features that are not finite, or
        more or fewer than the memory's.
        """
        names, kinds, apart = self.names, self.generated, self.taught
        if name in names and kinds[names.index(name)] != generated:
            raise ValueError(f"{name} is known as the other class: give the set another name")
        if name not in names:
            names, kinds, apart = (*names, name), np.append(kinds, generated), np.append(apart, taught)
        more = np.asarray(features, dtype=np.float64)
        if not np.isfinite(more).all():
            raise ValueError("features that are not finite cannot be remembered")
        n, deliveries, dim = more.shape
        if dim != self.features.shape[1]:
            raise ValueError(f"faces of {dim} features do not fit a memory of {self.features.shape[1]}")
        lowest, step = self.grid
        kept = np.rint((more.reshape(-1, dim) - lowest) / step).clip(0, 255).astype(np.uint8)
        faces = np.repeat(np.arange(n, dtype=np.int32) + self.n_faces, deliveries)
        return replace(
            self,
            features=np.concatenate([self.features, kept]),
            unusual=np.concatenate([self.unusual, np.asarray(unusual, dtype=np.float32).reshape(-1)]),
            faces=np.concatenate([self.faces, faces]),
            sets=np.concatenate([self.sets, np.full(len(faces), names.index(name), dtype=np.int32)]),
            uses=np.concatenate([self.uses, np.full(len(faces), use, dtype=np.uint8)]),
            names=names,
            generated=kinds,
            taught=apart,
        )

    def values(self, rows: npt.NDArray[Any], columns: slice = slice(None)) -> Floats:
        """The features (n, d) of some rows, a mask or numbers of them; of all columns unless said otherwise."""
        lowest, step = self.grid[:, columns]
        return np.asarray(self.features[rows][:, columns] * step + lowest)

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

    @property
    def shown(self) -> npt.NDArray[np.bool_]:
        """Which rows (M,) are of generated sets that were not taught, but shown when the network was trained."""
        return self.positive & ~self.taught[self.sets]

    def lessons(self) -> list[npt.NDArray[np.bool_]]:
        """The rows (M,) of each set that was taught."""
        return [self.sets == number for number in np.flatnonzero(self.taught)]

    def populations(self) -> dict[str, npt.NDArray[np.intp]]:
        """The numbers of the rows of each population to calibrate on; small ones join the largest, and give it
        their name."""
        rows = np.flatnonzero(self.rows(CALIBRATE))
        rows = rows[np.argsort(self.sets[rows], kind="stable")]
        ends = np.cumsum(np.bincount(self.sets[rows], minlength=len(self.names)))
        sizes = np.bincount(self.sets[rows[self.first[rows]]], minlength=len(self.names))
        each = {
            number: some
            for number, some in enumerate(np.split(rows, ends[:-1]))
            if len(some) and not self.generated[number]
        }
        if not each:
            raise ValueError("no photographs to calibrate on: add pictures")
        largest, *others = sorted(each, key=lambda number: -sizes[number])
        small = [number for number in others if sizes[number] < LEAST_POPULATION]
        joined = np.sort(np.concatenate([each[number] for number in (largest, *small)]))
        kept = {self.names[number]: each[number] for number in others if sizes[number] >= LEAST_POPULATION}
        return {" + ".join(self.names[number] for number in (largest, *small)): joined, **kept}

    @property
    def calibrated_on(self) -> str:
        """The populations, and of how many faces each is, in words."""
        return ", ".join(f"{name} ({self.first[rows].sum()})" for name, rows in self.populations().items())
