"""How a face differs from photographs, by two signs: features that are too long, textures that are too ordinary.

Source: docs/experiments.md, 17, 20 and 22. To an encoder that learnt from photographs alone, generated faces have
longer features than photographs, or textures nearer to their mean, and seldom both: a face is as strange as the
greater of the two signs says. With features f and textures t of a face,

    score = max((|f| - a) / b, (a' - d(t)) / b'),    d(t)^2 = mean_j ((t_j - m_j) / s_j)^2

so that higher = more anomalous. m, s and a, b and a', b' are means and deviations of the fitted photographs'
textures, lengths and distances. Each texture counts by itself: in the metric of a full covariance of hundreds of
them, the fitted photographs lie much nearer to their mean than others do. Textures are the mean and deviation of
each channel of an encoder's maps, as in Huang and Belongie, "Arbitrary style transfer in real-time with adaptive
instance normalization" (2017). That features of strange inputs differ in length was known of classifiers, where
they are shorter: Dhamija et al., "Reducing network agnostophobia" (2018); that what is too typical is no typical
member of its class either, of likelihoods: Nalisnick et al., "Detecting out-of-distribution inputs to deep
generative models using typicality" (2019).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensborn.density import FINITE, checked
from lensborn.density import Floats as AnyFloats  # of float32, too

LEAST = 50  # photographs to fit to: they tell a deviation to a tenth
GREATER = "greater of two signs"  # what a bundle says of the score
STILL = 1e-6  # of its size: a texture that differs by less between photographs stands still

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A fitted contrast of D numbers a face: its features and, in the last T columns, its textures.

    n_features: D, of both. textures: (2, T), mean and deviation of each texture among the fitted photographs.
    lengths, distances: (2,), the same of theirs. record: how it was fitted, JSON-able.
    Raises ValueError where the numbers are not finite or do not fit together.
    """

    n_features: int
    textures: Floats
    lengths: Floats
    distances: Floats
    record: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.textures.ndim != 2 or self.lengths.ndim != 1 or self.distances.ndim != 1:
            raise ValueError("a contrast's textures must be a table, its lengths and distances lists")
        whole = isinstance(self.n_features, int) and not isinstance(self.n_features, bool)
        if not whole or not 0 < self.n_textures < self.n_features:
            raise ValueError(
                f"n_features must be more than {self.n_textures} textures, and those more than 0, not "
                f"{self.n_features!r}"
            )
        for name, moments in self.to_arrays().items():
            if not (np.abs(moments) <= FINITE).all():
                raise ValueError(f"{name} holds values that are not finite")
            if len(moments) != 2 or not (moments[1] >= 1 / FINITE).all():
                raise ValueError(f"{name} must be a mean and a positive deviation")

    @classmethod
    def fit(cls, features: ArrayLike, n_textures: int) -> Self:
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
        textures = _moments(rows[:, -n_textures:])
        alive = textures[1] > STILL * (1 + np.abs(textures[0]))
        # one that stands still in photographs says nothing of them, and must not outweigh the others elsewhere
        textures[1] = np.where(alive, textures[1], FINITE)
        lengths, distances = (_moments(one) for one in _signs(rows, textures))
        if not (alive.any() and lengths[1] > 0 and distances[1] > 0):
            raise ValueError(
                "all features or textures are alike: give other photographs, or check the encoder"
            )
        return cls(rows.shape[1], textures, lengths, distances, {"n_fitted": len(rows)})

    @property
    def n_textures(self) -> int:
        """T, how many of the features are textures."""
        return int(self.textures.shape[1])

    def score(self, features: ArrayLike) -> Floats:
        """Of features (N, D): (N,), higher = more anomalous; a score does not depend on the rows beside it.

        Raises ValueError for another shape or values that are not finite in float32.
        """
        lengths, distances = _signs(checked(features, self.n_features), self.textures)
        return np.maximum(_standard(lengths, self.lengths), -_standard(distances, self.distances))

    def settings(self) -> dict[str, Any]:
        """Everything but the arrays, JSON-able; `from_arrays` takes it back."""
        return {
            **self.record,
            "kind": "contrast",
            "score": GREATER,
            "n_features": self.n_features,
            "n_textures": self.n_textures,
        }

    def to_arrays(self) -> dict[str, AnyFloats]:
        """The arrays by name."""
        return {"textures": self.textures, "lengths": self.lengths, "distances": self.distances}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyFloats], settings: Mapping[str, Any]) -> Self:
        """The contrast that `to_arrays` and `settings` describe. ValueError where they cannot."""
        wanted = {"textures", "lengths", "distances"}
        if set(arrays) != wanted:
            raise ValueError(f"a contrast has {sorted(wanted)}, not {sorted(arrays)}")
        if any(array.dtype.kind != "f" for array in arrays.values()):
            raise ValueError("the arrays of a contrast must be of floating point")
        doubles = {name: array.astype(np.float64, order="C") for name, array in arrays.items()}
        contrast = cls(
            n_features=settings.get("n_features", "missing"),
            **doubles,
            record={key: value for key, value in settings.items() if key not in _DERIVED},
        )
        if contrast.settings() != dict(settings):
            raise ValueError(
                "the settings give another kind, score or number of textures: an earlier lensborn made them"
            )
        return contrast


_DERIVED = ("kind", "score", "n_features", "n_textures")


def _signs(rows: Floats, textures: Floats) -> tuple[Floats, Floats]:
    """How long the features of rows (N, D) are, and how far their textures lie: (N,) each."""
    plain = rows.shape[1] - textures.shape[1]
    lengths = np.sqrt(np.square(rows[:, :plain]).sum(axis=1))
    return lengths, np.sqrt(np.square(_standard(rows[:, plain:], textures)).mean(axis=1))


def _moments(values: Floats) -> Floats:
    return np.stack([values.mean(axis=0), values.std(axis=0)])


def _standard(values: Floats, moments: Floats) -> Floats:
    mean, deviation = moments
    return np.asarray((values - mean) / deviation)
