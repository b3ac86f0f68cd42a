"""Arithmetic with censored values, which are only known to lie beyond a limit.

A ray without a flip up to max_epsilon has an epsilon greater than max_epsilon, and it is not known how much greater. So
an epsilon is an interval [low, high], which is a point if the ray flipped; a score, epsilon_plus - epsilon_minus, is
one too. Some statistics are exact all the same: a median whose neighbours in rank are points, a comparison of intervals
that do not overlap. Everything else is marked as a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas
from numpy.typing import ArrayLike, NDArray
from scipy import stats

QUANTITIES = ("score", "epsilon_minus", "epsilon_plus")


@dataclass(frozen=True)
class Intervals:
    """N values, each known to lie in [low, high]; if low < high, finite ends do not belong to the interval.

    Args:
        observed: (N,), with max_epsilon for each censored epsilon.
        low, high: (N,); equal if the value is exact.
    """

    observed: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def exact(self) -> NDArray[np.bool_]:
        return self.low == self.high

    def __len__(self) -> int:
        return len(self.observed)


@dataclass(frozen=True)
class Estimate:
    """A statistic of censored values: `value` is that of the observed values; the true one lies in [low, high]."""

    value: float
    low: float
    high: float

    @property
    def mark(self) -> str:
        """The mark before `value`: empty if it is exact, ≥ or ≤ if it is a bound, ≈ if it is neither."""
        if np.isnan(self.value) or self.low == self.high:
            return ""
        if self.low == self.value:
            return "≥"
        return "≤" if self.high == self.value else "≈"


def intervals(rows: pandas.DataFrame, quantity: str, prefix: str = "") -> Intervals:
    """The known intervals of a quantity ("score", "epsilon_minus" or "epsilon_plus") in rows of results.

    Args:
        rows: columns epsilon_minus, epsilon_plus, flipped_minus, flipped_plus, with `prefix` ("shuffled_") before each.
    """
    minus, plus = (rows[f"{prefix}epsilon_{sign}"].to_numpy(np.float64) for sign in ("minus", "plus"))
    minus_flips, plus_flips = (rows[f"{prefix}flipped_{sign}"].to_numpy(bool) for sign in ("minus", "plus"))
    if quantity == "epsilon_minus":
        return Intervals(minus, minus, np.where(minus_flips, minus, np.inf))
    if quantity == "epsilon_plus":
        return Intervals(plus, plus, np.where(plus_flips, plus, np.inf))
    if quantity != "score":
        raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)} (got {quantity!r})")
    score = plus - minus
    return Intervals(score, np.where(minus_flips, score, -np.inf), np.where(plus_flips, score, np.inf))


def mean_of(values: Intervals) -> Estimate:
    """The mean; it is exact only if every value is."""
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    # Not the means of low and high: an infinite end takes the whole mean with it, in the other case all are equal.
    value = float(values.observed.mean())
    low = -np.inf if np.isneginf(values.low).any() else value
    high = np.inf if np.isposinf(values.high).any() else value
    return Estimate(value, low, high)


def quantile_of(values: Intervals, share: float) -> Estimate:
    """A quantile by rank, interpolated linearly between two ranks.

    No value is below its low end, so no quantile is below the same quantile of the low ends, nor above that of the high
    ends. If these two agree, the quantile is exact, however many values are censored.
    """
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    return Estimate(*(_between_ranks(ends, share) for ends in (values.observed, values.low, values.high)))


def median_of(values: Intervals) -> Estimate:
    """The median by rank, the mean of the middle two for an even number; see `quantile_of`."""
    return quantile_of(values, 0.5)


def _between_ranks(values: NDArray[np.float64], share: float) -> float:
    ordered = np.sort(values)
    place = share * (len(ordered) - 1)
    below, above = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    for end in (below, above):
        if np.isinf(end) or below == above:  # interpolating between a number and infinity gives infinity
            return float(end)
    return float(below + (above - below) * (place - np.floor(place)))


BETTER, EQUAL, WORSE, UNDECIDED = "better", "equal", "worse", "undecided"


def compared(first: Intervals, second: Intervals) -> NDArray[np.str_]:
    """For each pair, whether the first is better (greater), equal, worse, or undecided because of censoring."""

    def surely_greater(a: Intervals, b: Intervals) -> NDArray[np.bool_]:
        # An open end that equals the other value is still beyond it.
        return (a.low > b.high) | ((a.low == b.high) & ~(a.exact & b.exact))

    equal = first.exact & second.exact & (first.low == second.low)
    return np.select(
        [equal, surely_greater(first, second), surely_greater(second, first)], [EQUAL, BETTER, WORSE], UNDECIDED
    )


FEWEST_FOR_AN_INTERVAL = 6
"""Of fewer values not even the least and the greatest enclose a median in 95 of 100 cases (of N, in 1 - 2^(1 - N)
of all), and resamples never reach beyond them."""


def bootstrap_interval(
    values: ArrayLike, statistic: Callable[..., NDArray[np.float64]] = np.median, seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """The 95 % interval of a statistic of `values` (N,) by resampling them with replacement (percentile bootstrap).

    Args:
        statistic: `numpy.median`, `numpy.mean`, or another function of (values, axis=).
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return np.nan, np.nan
    if np.ptp(values) == 0:  # SciPy warns of these
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        statistic,
        n_resamples=resamples,
        batch=max(1, 4_000_000 // len(values)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
