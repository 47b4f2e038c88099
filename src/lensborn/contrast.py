"""How unlike photographs a face is, by two signs: how long its features are, less how strange its textures are.

Source: docs/experiments.md, 17. To an encoder that learnt from photographs alone, generated faces have longer
features than photographs, and textures nearer to their mean. With the features f of a face and its textures t,

    score = (|f| - a) / b + weight (d(t) - a') / b',    weight < 0: higher = more anomalous

where d is how far t lies from photographs (see `strangeness`), and a, b and a', b' are the mean and deviation of
the fitted photographs' lengths and distances. Textures are the mean and deviation of each channel of an encoder's
maps, as in Huang and Belongie, "Arbitrary style transfer in real-time with adaptive instance normalization" (2017).
That features of strange inputs differ in length was known of classifiers, where they are shorter: Dhamija et al.,
"Reducing network agnostophobia" (2018).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from lensborn import defaults
from lensborn.density import FINITE, checked
from lensborn.density import Floats as AnyFloats
from lensborn.strangeness import Floats, Strangeness

LEAST = 50  # photographs to fit to: they tell a deviation to a tenth; Ledoit and Wolf shrink as so few need


@dataclass(frozen=True, eq=False)
class Contrast:
    """A fitted contrast of D numbers a face: its features and, in the last T columns, its textures.

    n_features: D, of both. textures: of photographs. lengths, distances: (2,), mean and deviation of the fitted
    photographs'. weight: of the distance. record: how it was fitted, JSON-able. Raises ValueError where the
    numbers are not finite or do not fit together.
    """

    n_features: int
    textures: Strangeness
    lengths: Floats
    distances: Floats
    weight: float
    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not _is_number(self.n_features, int) or not 0 < self.n_textures < self.n_features:
            raise ValueError(
                f"n_features must be more than {self.n_textures} textures, and those more than 0, not "
                f"{self.n_features!r}"
            )
        if not _is_number(self.weight, int | float) or not abs(self.weight) <= FINITE:
            raise ValueError(f"weight must be a finite number, not {self.weight!r}")
        for name, array in self.to_arrays().items():
            if not (np.abs(array) <= FINITE).all():
                raise ValueError(f"{name} holds values that are not finite")
        for name, moments in (("lengths", self.lengths), ("distances", self.distances)):
            if moments.shape != (2,) or moments[1] < 1 / FINITE:
                raise ValueError(f"{name} must be a mean and a positive deviation, not {moments.tolist()}")

    @classmethod
    def fit(cls, features: ArrayLike, n_textures: int, *, weight: float = defaults.TEXTURE_WEIGHT) -> Self:
        """Of photographs' features (N, D), the last `n_textures` columns their textures; N >= `LEAST`.

        Raises ValueError, naming the remedy, for too few of them, or features that it cannot be fitted to.
        """
        rows = checked(features)
        if not 0 < n_textures < rows.shape[1]:
            raise ValueError(
                f"textures must be some of the {rows.shape[1]} features, not {n_textures}: use an encoder that "
                "gives textures, or fit a mixture"
            )
        if len(rows) < LEAST:
            raise ValueError(f"{len(rows)} features are too few for a contrast: give {LEAST} or more")
        if not np.ptp(rows[:, -n_textures:], axis=0).any():
            raise ValueError("all textures are equal: give other photographs, or check the encoder")
        found = Strangeness.fit(rows[:, -n_textures:])
        # in memory as a bundle will have it, on which the last bits of a product depend
        textures = Strangeness(found.centre, np.ascontiguousarray(found.whitening))
        lengths, distances = (np.array([one.mean(), one.std()]) for one in _signs(rows, textures))
        return cls(rows.shape[1], textures, lengths, distances, float(weight), {"n_fitted": len(rows)})

    @property
    def n_textures(self) -> int:
        """T, how many of the features are textures."""
        return int(self.textures.centre.shape[0])

    def score(self, features: ArrayLike) -> Floats:
        """Of features (N, D): (N,), higher = more anomalous; a score does not depend on the rows beside it.

        Raises ValueError for another shape or values that are not finite in float32.
        """
        lengths, distances = _signs(checked(features, self.n_features), self.textures)
        return _standard(lengths, self.lengths) + self.weight * _standard(distances, self.distances)

    def settings(self) -> dict[str, Any]:
        """Everything but the arrays, JSON-able; `from_arrays` takes it back."""
        return {
            **self.record,
            "kind": "contrast",
            "weight": self.weight,
            "n_features": self.n_features,
            "n_textures": self.n_textures,
        }

    def to_arrays(self) -> dict[str, AnyFloats]:
        """The arrays by name."""
        return {
            "centre": self.textures.centre,
            "whitening": self.textures.whitening,
            "lengths": self.lengths,
            "distances": self.distances,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyFloats], settings: Mapping[str, Any]) -> Self:
        """The contrast that `to_arrays` and `settings` describe. ValueError where they cannot."""
        wanted = {"centre", "whitening", "lengths", "distances"}
        if set(arrays) != wanted:
            raise ValueError(f"a contrast has {sorted(wanted)}, not {sorted(arrays)}")
        if any(array.dtype.kind != "f" for array in arrays.values()):
            raise ValueError("the arrays of a contrast must be of floating point")
        doubles = {name: array.astype(np.float64, order="C") for name, array in arrays.items()}
        contrast = cls(
            n_features=settings.get("n_features", "missing"),
            textures=Strangeness(doubles["centre"], doubles["whitening"]),
            lengths=doubles["lengths"],
            distances=doubles["distances"],
            weight=settings.get("weight", "missing"),
            record={key: value for key, value in settings.items() if key not in _DERIVED},
        )
        if contrast.settings() != dict(settings):
            raise ValueError("the settings give another kind or number of textures than the arrays")
        return contrast


_DERIVED = ("kind", "weight", "n_features", "n_textures")


def _signs(rows: Floats, textures: Strangeness) -> tuple[Floats, Floats]:
    """How long the features of rows (N, D) are, and how far their textures lie: (N,) each."""
    plain = rows.shape[1] - len(textures.centre)
    # row by row, as in `strangeness`
    lengths = np.array([np.linalg.norm(row) for row in rows[:, :plain]], dtype=np.float64)
    return lengths, textures.of(rows[:, plain:])


def _standard(values: Floats, moments: Floats) -> Floats:
    mean, deviation = moments
    return np.asarray((values - mean) / deviation)


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
