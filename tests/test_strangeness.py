"""How far features lie from photographs."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from lensborn.strangeness import Strangeness


def test_it_is_the_cube_root_of_mahalanobis_squared_distance() -> None:
    rng = np.random.default_rng(0)
    photographs = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5)) * [1, 10, 0.1, 1, 1] + 3
    features = photographs[:40] + rng.normal(size=(40, 5))
    mean, deviation = photographs.mean(0), photographs.std(0)
    covariance = LedoitWolf().fit((photographs - mean) / deviation).covariance_
    away = (features - mean) / deviation
    squares = np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    np.testing.assert_allclose(Strangeness.fit(photographs).of(features), squares ** (1 / 3), rtol=1e-6)


def test_of_normal_photographs_it_is_nearly_normal() -> None:
    rng = np.random.default_rng(1)
    found = Strangeness.fit(rng.normal(size=(4000, 30))).of(rng.normal(size=(4000, 30)))
    z = (found - found.mean()) / found.std()
    assert abs((z**3).mean()) < 0.1  # no skew, where the squared distance has one of 0.5
    assert (z > 1.645).mean() == pytest.approx(0.05, abs=0.012)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    rng = np.random.default_rng(2)
    photographs = np.column_stack([rng.normal(size=50), np.full(50, 7.0)])
    assert np.isfinite(Strangeness.fit(photographs).of(photographs)).all()
