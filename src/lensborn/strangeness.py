"""How far features lie from those of photographs, in a space that was learnt to tell generated faces.

A network that was shown some generators says little of another kind, or the opposite of the truth, where it is
asked which side a face is on; how far a face lies from all photographs still tells (Lee et al., "A simple unified
framework for detecting out-of-distribution samples and adversarial attacks", 2018: Mahalanobis distance in the
features of a classifier). The covariance is shrunk as in Ledoit and Wolf, "A well-conditioned estimator for
large-dimensional covariance matrices" (2004).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Strangeness:
    """`centre` (D,): the mean of photographs. `whitening` (D, D), float32 as a file of half the size: makes their
    deviations from it uncorrelated, of variance one. Raises ValueError for other shapes and for what is not
    finite."""

    centre: Floats
    whitening: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        (dim,) = self.centre.shape
        if self.whitening.shape != (dim, dim):
            raise ValueError("the whitening of photographs does not fit their centre")
        if not (np.isfinite(self.centre).all() and np.isfinite(self.whitening).all()):
            raise ValueError("the centre or the whitening of photographs is not finite")

    @classmethod
    def fit(cls, features: npt.ArrayLike) -> Self:
        """Of photographs' features (N, D), N >= 2."""
        from sklearn.covariance import LedoitWolf  # noqa: PLC0415 - detection does not learn

        rows = np.asarray(features, dtype=np.float64)
        centre, deviation = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)
        covariance = LedoitWolf(assume_centered=True).fit((rows - centre) / deviation).covariance_
        variances, axes = np.linalg.eigh(covariance)
        return cls(centre, ((axes / np.sqrt(variances)).T / deviation).astype(np.float32))

    def of(self, features: npt.ArrayLike) -> Floats:
        """The cube root of the squared distance (N,) of features (N, D): of photographs nearly normal, were they
        normal (Wilson and Hilferty, 1931)."""
        rows = np.asarray(features, dtype=np.float64) - self.centre
        # row by row: the last bits of a matrix product depend on the number of rows
        squares = [np.square(self._whitening @ row).sum() for row in rows]
        return np.cbrt(np.array(squares, dtype=np.float64))

    @cached_property
    def _whitening(self) -> Floats:
        return self.whitening.astype(np.float64)
