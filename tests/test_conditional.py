"""A calibration conditional on delivery."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lensborn.bench.conditional import BANDS, N_TRAITS, Conditional, delivery_traits
from lensborn.calibration import Conformal

RNG = np.random.default_rng(0)


def test_what_delivery_explains_is_taken_out() -> None:
    """Scores whose location and scale depend on two traits: what is left does not, and neither do false alarms."""
    traits = RNG.normal(size=(4000, 2))
    scores = 3 * traits[:, 0] + (1 + 0.5 * np.tanh(traits[:, 1])) * RNG.normal(size=4000)
    found = Conditional.fit(scores[:2000], traits[:2000])
    left = found.standardise(scores, traits)
    assert abs(np.corrcoef(left[2000:], traits[2000:, 0])[0, 1]) < 0.05
    conformal = Conformal.fit(left[2000:3000])
    plain = Conformal.fit(scores[2000:3000])
    sharp = traits[3000:, 0] > 1
    assert (plain.p_values(scores[3000:]) <= 0.05)[sharp].mean() > 0.15
    assert (conformal.p_values(left[3000:]) <= 0.05)[sharp].mean() == pytest.approx(0.05, abs=0.05)


def test_the_regression_is_the_ridge_of_the_textbook() -> None:
    traits, scores = RNG.normal(size=(50, 3)), RNG.normal(size=50)
    found = Conditional.fit(scores, traits)
    x = np.c_[(traits - traits.mean(axis=0)) / traits.std(axis=0), np.ones(50)]
    penalty = np.diag([0.5, 0.5, 0.5, 0])  # a hundredth of fifty
    np.testing.assert_allclose(found.location, np.linalg.inv(x.T @ x + penalty) @ x.T @ scores, rtol=1e-9)
    np.testing.assert_allclose(found.residuals(scores, traits), scores - x @ found.location)


def test_beyond_what_was_seen_a_line_promises_nothing() -> None:
    traits = RNG.normal(size=(100, 1))
    found = Conditional.fit(traits[:, 0], traits)
    far, farther = found.residuals([0.0, 0.0], [[50.0], [500.0]])
    assert far == farther


def test_traits_tell_how_a_picture_was_handled() -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (96, 96, 3), dtype=np.uint8))
    blurred = noise.filter(ImageFilter.GaussianBlur(2))
    sharp, soft = delivery_traits(np.stack([np.asarray(noise), np.asarray(blurred)]), [100, 200])
    assert sharp.shape == (N_TRAITS,)
    assert (sharp[-1], soft[-1]) == (np.log2(100), np.log2(200))
    assert (sharp[5:BANDS] > soft[5:BANDS] + 1).all()
    assert np.ptp(sharp[2:BANDS]) < 1.5  # white noise: all bands alike
    assert delivery_traits(np.zeros((0, 96, 96, 3), np.uint8), []).shape == (0, N_TRAITS)
