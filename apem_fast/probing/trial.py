"""Tests whether a low precision is fast on this machine, at a few per cent of the time that float32 has taken.

A processor without the instructions computes the same numbers ten to thirty times slower than float32. So float32 runs
first; then one image runs in low precision, and once more when everything is prepared for it. A run that takes too long
is stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from apem_fast.running.low_precision import TooSlow

WORK_BEFORE = 500  # inputs that float32 has answered before a trial, which may cost a few of them
ALLOWANCE = 4.0  # a first run may take so many times as long, since it prepares what later ones reuse
SEARCHES_WASTED = 2
Clock = Callable[[], float]


class Trial:
    """The trial of one precision on one model, shared by all its searches.

    Args:
        clock_is_free: whether a batch can be timed without waiting for a device; otherwise the precision is used
            without a trial, and judged only by the probes that it saves.
    """

    def __init__(self, clock_is_free: bool, clock: Clock = time.perf_counter):
        self._clock = clock
        self._answered = self._wasted = 0
        self.pays: bool | None = None if clock_is_free else True
        """Whether the precision pays; None until it is known."""

    def was_wasteful(self) -> None:
        """Reports that a search gave the precision up as wasteful; after the second, no search starts with it."""
        self._wasted += 1
        if self._wasted == SEARCHES_WASTED:
            self.pays = False

    def answered(self, inputs: int) -> None:
        """Counts inputs that float32 has answered."""
        self._answered += inputs

    @property
    def is_due(self) -> bool:
        return self.pays is None and self._answered >= WORK_BEFORE

    def run(self, one_input: Callable[[float], None], seconds_in_float32: float) -> None:
        """Decides by running one input twice.

        Args:
            one_input: runs it in low precision; may raise `TooSlow` once the clock has reached its argument.
            seconds_in_float32: the time of one input in float32.
        """
        self.pays = all(self._within(allowance * seconds_in_float32, one_input) for allowance in (ALLOWANCE, 1.0))

    def _within(self, seconds: float, one_input: Callable[[float], None]) -> bool:
        begin = self._clock()
        try:
            one_input(begin + seconds)
        except TooSlow:
            return False
        return self._clock() - begin <= seconds
