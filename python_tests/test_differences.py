"""Differences between two precisions along rays: what is expected of them, and how far that may be off."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apem_fast.probing.differences import BAND, ENOUGH, Differences


def rays(*values):
    return np.array(values, np.int64)


def calibrated(off: float) -> Differences:
    """Other rays showed corrections to be off by so much, both from epsilon 0 alone and from more points."""
    differences = Differences()
    for r in range(100, 100 + ENOUGH):
        differences.enter(r, 0.0)
        differences.learn(rays(r, r), np.array([1.0, 2.0]), np.array([off, 2 * off]))
    return differences


def test_a_correction_is_interpolated_and_goes_on_as_it_ended():
    differences = Differences()
    differences.enter(3, 1.0)
    assert differences.correction(rays(3, 3), np.array([0.0, 9.0])).tolist() == [1.0, 1.0]
    differences.learn(rays(3), np.array([10.0]), np.array([2.0]))
    differences.learn(rays(3), np.array([4.0]), np.array([2.0]))
    asked = np.array([0.0, 2.0, 4.0, 7.0, 10.0, 50.0])
    assert differences.correction(np.full(6, 3), asked).tolist() == [1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


def test_nothing_is_trusted_before_enough_was_checked():
    differences = Differences()
    for r in range(ENOUGH + 1):
        differences.enter(r, 0.0)
    for r in range(ENOUGH):
        assert differences.band(rays(ENOUGH)).tolist() == [math.inf]
        differences.learn(rays(r), np.array([1.0]), np.array([0.5]))
    assert differences.band(rays(ENOUGH)).tolist() == [BAND * 0.5]
    assert differences.band(rays(0)).tolist() == [math.inf], "corrections from more than one point count apart"


@pytest.mark.parametrize("off", [0.01, 1.0])
def test_a_ray_that_was_off_by_more_than_usual_has_a_wider_band_for_itself(off):
    differences = calibrated(off)
    for r in (1, 2):
        differences.enter(r, 0.0)
    before = differences.band(rays(2))[0]
    differences.learn(rays(1), np.array([1.0]), np.array([7 * off]))
    usual = math.sqrt((ENOUGH * off**2 + 49 * off**2) / (ENOUGH + 1))
    np.testing.assert_allclose(differences.band(rays(1, 2)), [BAND * off + 7 * off, BAND * usual])
    assert differences.band(rays(2))[0] > before


def test_a_ray_may_be_forgotten():
    differences = calibrated(0.1)
    assert 100 in differences
    differences.forget(100)
    assert 100 not in differences
    differences.enter(100, 3.0)
    assert differences.correction(rays(100), np.array([5.0])).tolist() == [3.0]


@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0.0, 1.0), heavy=st.booleans())
def test_differences_that_wander_seldom_leave_the_band(seed, noise, heavy):
    """Random walks with and without noise, Gaussian or heavy-tailed: of the next points, few are off by more."""
    rng = np.random.default_rng(seed)
    differences, outside, points = Differences(), 0, 0
    for r in range(60):
        steps = rng.standard_t(4, 6) if heavy else rng.normal(size=6)
        path = np.cumsum(steps) + noise * rng.normal(size=6)
        differences.enter(r, 0.0)
        for epsilon, difference in enumerate(path, 1):
            at = np.array([float(epsilon)])
            if math.isfinite(band := differences.band(rays(r))[0]):
                points += 1
                outside += abs(difference - differences.correction(rays(r), at)[0]) > band
            differences.learn(rays(r), at, np.array([difference]))
    assert points > 200 and outside <= 0.02 * points
