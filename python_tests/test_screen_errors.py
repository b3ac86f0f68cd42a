"""ScreenErrors between two precisions along rays: what is expected of them, and how far that may be off."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apem_fast.probing.screen_errors import BAND, ENOUGH, ScreenErrors


def rays(*values):
    return np.array(values, np.int64)


def calibrated(off: float) -> ScreenErrors:
    """Other rays showed corrections to be off by so much, both from epsilon 0 alone and from more points."""
    errors = ScreenErrors()
    for r in range(100, 100 + ENOUGH):
        errors.enter(r, 0.0)
        errors.learn(rays(r, r), np.array([1.0, 2.0]), np.array([off, 2 * off]))
    return errors


def test_a_correction_is_interpolated_and_goes_on_as_it_ended():
    errors = ScreenErrors()
    errors.enter(3, 1.0)
    assert errors.correction(rays(3, 3), np.array([0.0, 9.0])).tolist() == [1.0, 1.0]
    errors.learn(rays(3), np.array([10.0]), np.array([2.0]))
    errors.learn(rays(3), np.array([4.0]), np.array([2.0]))
    asked = np.array([0.0, 2.0, 4.0, 7.0, 10.0, 50.0])
    assert errors.correction(np.full(6, 3), asked).tolist() == [1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


def test_nothing_is_trusted_before_enough_was_checked():
    errors = ScreenErrors()
    for r in range(ENOUGH + 1):
        errors.enter(r, 0.0)
    for r in range(ENOUGH):
        assert errors.band(rays(ENOUGH)).tolist() == [math.inf]
        errors.learn(rays(r), np.array([1.0]), np.array([0.5]))
    assert errors.band(rays(ENOUGH)).tolist() == [BAND * 0.5]
    assert errors.band(rays(0)).tolist() == [math.inf], "corrections from more than one point count apart"


@pytest.mark.parametrize("off", [0.01, 1.0])
def test_a_ray_that_was_off_by_more_than_usual_has_a_wider_band_for_itself(off):
    errors = calibrated(off)
    for r in (1, 2):
        errors.enter(r, 0.0)
    before = errors.band(rays(2))[0]
    errors.learn(rays(1), np.array([1.0]), np.array([7 * off]))
    usual = math.sqrt((ENOUGH * off**2 + 49 * off**2) / (ENOUGH + 1))
    np.testing.assert_allclose(errors.band(rays(1, 2)), [BAND * off + 7 * off, BAND * usual])
    assert errors.band(rays(2))[0] > before


def test_a_ray_may_be_forgotten():
    errors = calibrated(0.1)
    assert 100 in errors
    errors.forget(100)
    assert 100 not in errors
    errors.enter(100, 3.0)
    assert errors.correction(rays(100), np.array([5.0])).tolist() == [3.0]


@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0.0, 1.0), heavy=st.booleans())
def test_differences_that_wander_seldom_leave_the_band(seed, noise, heavy):
    """Random walks with and without noise, Gaussian or heavy-tailed: of the next points, few are off by more."""
    rng = np.random.default_rng(seed)
    errors, outside, points = ScreenErrors(), 0, 0
    for r in range(60):
        steps = rng.standard_t(4, 6) if heavy else rng.normal(size=6)
        path = np.cumsum(steps) + noise * rng.normal(size=6)
        errors.enter(r, 0.0)
        for epsilon, difference in enumerate(path, 1):
            at = np.array([float(epsilon)])
            if math.isfinite(band := errors.band(rays(r))[0]):
                points += 1
                outside += abs(difference - errors.correction(rays(r), at)[0]) > band
            errors.learn(rays(r), at, np.array([difference]))
    assert points > 200 and outside <= 0.02 * points
