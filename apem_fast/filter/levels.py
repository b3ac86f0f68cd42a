"""The levels of one relevance map: which values become 0 at each level, and the l1 norms then, from one sort.

A level is one distinct positive value; the filter sets levels to 0 from the least upwards (P2 Algorithm 2). The map at
a level is never stored: a ray only needs a threshold and two l1 norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

RELEVANCE, IRRELEVANCE = 0, 1  # the columns of `norm` and `path`


@dataclass(frozen=True)
class Levels:
    """Row 0 is the original map, row t the map after t steps. The step that would empty the map has no row."""

    threshold: NDArray[np.float64]  # (T + 1,) values up to this one are 0
    zeroed: NDArray[np.int64]  # (T + 1,) positive values that were set to 0
    norm: NDArray[np.float64]  # (T + 1, 2) l1 norms of relevance and irrelevance, after broadcast to the channels
    path: NDArray[np.float64]  # (T + 1, 2) cumulative l1 length travelled by each direction, increasing
    values: NDArray[np.float64]  # (P,) all values of the map, ascending
    order: NDArray[np.int64]  # (P,) their positions in the map

    @property
    def last(self) -> int:
        return len(self.threshold) - 1

    @property
    def removed_share(self) -> NDArray[np.float64]:
        """The share of the map's l1 norm that is 0 now: (T + 1,)."""
        return 1 - self.norm[:, RELEVANCE] / self.norm[0, RELEVANCE]

    def along(self, weight: NDArray[np.float64], ray: int) -> NDArray[np.float64]:
        """The change of a margin over the levels, to first order: (T + 1,).

        At each level it is the sum of `weight` (1 or C, H, W) times the map, or 1 minus the map, divided by its norm.
        """
        ascending = weight.reshape(-1)[self.order]
        gone = len(self.values) - np.count_nonzero(self.values > 0) + self.zeroed

        def up_to_level(terms: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([[0.0], np.cumsum(terms)])[gone]

        if ray == RELEVANCE:
            terms = self.values * ascending
            return (terms.sum() - up_to_level(terms)) / self.norm[:, ray]
        terms = (1 - self.values) * ascending
        return (terms.sum() - up_to_level(terms) + up_to_level(ascending)) / self.norm[:, ray]


def count_levels(relevance: Tensor, steps: int | None = None) -> int:
    """How many levels one map has: its distinct positive values, or the steps into which they are grouped."""
    values = _values(relevance)
    distinct = len(np.unique(values[values > 0]))
    return distinct if steps is None else min(steps, distinct)


def _values(relevance: Tensor) -> NDArray[Any]:
    return relevance.detach().flatten().cpu().numpy()


def levels_of(relevance: Tensor, channels: int, steps: int | None = None) -> Levels:
    """The levels of one map.

    Args:
        relevance: (1 or C, H, W) in [0, 1], with a positive value.
        channels: of the image that the map is applied to.
        steps: the number of steps into which the levels are grouped, with equally many distinct values each; None
            gives each value its own step.
    """
    repeats = channels // relevance.shape[0]
    every = _values(relevance)
    values, count = np.unique(every[every > 0], return_counts=True)
    total = relevance.numel()

    distinct = len(values)
    groups = distinct if steps is None else min(steps, distinct)
    taken = np.arange(groups) * distinct // groups  # how many distinct values are 0 at each row
    # The remaining values are summed from the greatest down: as differences of large sums, the last levels would be
    # lost in rounding. 1 - R is rounded before it is summed, as in the kernels; every value set to 0 gives exactly 1.
    remaining = _sums_from_the_end(values.astype(np.float64), count)[taken]
    inverse = _sums_from_the_end((1 - values).astype(np.float64), count)[taken]
    ones = total - (np.cumsum(count[::-1])[::-1])[taken]
    norm = np.stack([remaining, inverse + ones], axis=1) * repeats
    # Setting a mass m to 0 changes the direction v / norm by about 2 m / norm, which adds up to 2 log(norm).
    path = 2 * np.abs(np.log(norm / norm[0])) + 1e-12 * np.arange(groups)[:, None]
    threshold = np.where(taken > 0, values[taken - 1], 0).astype(np.float64)
    order = np.argsort(every, kind="stable")
    return Levels(
        threshold,
        np.concatenate([[0], np.cumsum(count)])[taken],
        norm,
        np.maximum.accumulate(path),
        every[order].astype(np.float64),
        order,
    )


def _sums_from_the_end(values: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sums of values[i:] * count[i:] for each i, as if summed exactly and rounded once (except in rare cases).

    The rounding error of each partial sum is itself a float64, so the errors can be summed too.
    """
    terms = (values * count)[::-1]  # exact: 24 bits of float32 times a count; in float64 rounded like any product
    total = np.cumsum(terms)
    before = np.concatenate([[0.0], total[:-1]])
    gained = total - before
    error = (before - (total - gained)) + (terms - gained)
    return (total + np.cumsum(error))[::-1]
