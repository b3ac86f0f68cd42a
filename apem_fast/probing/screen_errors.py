"""The error of a low precision along rays, and the band around 0 in which its margins decide nothing.

A difference is a margin in low precision minus the margin in float32. It is known at epsilon 0 and wherever both were
computed; between such points it is interpolated, and beyond the last it is assumed to stay the same. Each further point
shows the error of this estimate. The band is BAND times the root mean square error on all rays, plus the greatest error
on the ray itself. Rays with only epsilon 0 are counted separately, since an estimate from far away has a larger error.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

BAND = 3.0
ENOUGH = 16  # estimates that must be checked before any is trusted


class ScreenErrors:
    """Error of low precision against float32, for each ray of a search.

    A ray enters with its difference at epsilon 0, and can be removed when it is decided.
    """

    def __init__(self) -> None:
        self._epsilon: dict[int, list[float]] = {}  # by ray, ascending
        self._difference: dict[int, list[float]] = {}
        self._most_off: dict[int, float] = {}
        self._squares, self._checked = [0.0, 0.0], [0, 0]  # of corrections from epsilon 0 alone, and from more points

    def __contains__(self, ray: int) -> bool:
        return ray in self._epsilon

    def enter(self, ray: int, at_zero: float) -> None:
        self._epsilon[ray], self._difference[ray], self._most_off[ray] = [0.0], [at_zero], 0.0

    def forget(self, ray: int) -> None:
        for known in (self._epsilon, self._difference, self._most_off):
            known.pop(ray, None)

    def correction(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> NDArray[np.float64]:
        """The estimated differences, to be subtracted from margins in low precision: (M,)."""
        return np.array([self._expected(r, e) for r, e in zip(ray.tolist(), epsilon.tolist())], np.float64)

    def band(self, ray: NDArray[np.int64]) -> NDArray[np.float64]:
        """The possible error of a corrected margin, (M,); infinite until enough estimates were checked.

        Rays that have not entered yet are allowed too.
        """
        usual = [
            BAND * math.sqrt(squares / checked) if checked >= ENOUGH else math.inf
            for squares, checked in zip(self._squares, self._checked)
        ]
        return np.array(
            [usual[len(self._epsilon.get(r, ())) > 1] + self._most_off.get(r, 0.0) for r in ray.tolist()], np.float64
        )

    def learn(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64], difference: NDArray[np.float64]) -> None:
        """Adds differences that were measured, all finite."""
        for r, e, d in zip(ray.tolist(), epsilon.tolist(), difference.tolist()):
            points, known = self._epsilon[r], self._difference[r]
            off = abs(d - self._expected(r, e))
            kind = len(points) > 1
            self._squares[kind] += off * off
            self._checked[kind] += 1
            self._most_off[r] = max(self._most_off[r], off)
            at = bisect_left(points, e)
            points.insert(at, e)
            known.insert(at, d)

    def _expected(self, ray: int, epsilon: float) -> float:
        points, known = self._epsilon[ray], self._difference[ray]
        at = bisect_left(points, epsilon)
        if at == len(points):
            return known[-1]
        if at == 0:
            return known[0]
        share = (epsilon - points[at - 1]) / (points[at] - points[at - 1])
        return known[at - 1] + share * (known[at] - known[at - 1])
