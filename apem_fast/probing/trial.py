"""Whether this machine has a low precision at all: found out for a few hundredths of what float32 has worked already.

A processor without the instructions computes the same numbers ten to thirty times slower than float32. So float32 works
first; then one image is run in the low precision, and again once all is prepared for it. Each run is broken off when it
has taken longer than it may.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from apem_fast.running.low_precision import TooSlow

WORK_BEFORE = 500  # inputs that float32 has answered before it: a few of them are what a trial may cost
ALLOWANCE = 4.0  # for a first run, which prepares what later ones reuse
SEARCHES_WASTED = 2
Clock = Callable[[], float]


class Trial:
    """The trial of one precision on one model, shared by all its searches.

    Args:
        clock_is_free: whether a batch can be timed without waiting for a device; else the precision is taken on trust,
            and judged by what it spares alone.
    """

    def __init__(self, clock_is_free: bool, clock: Clock = time.perf_counter):
        self._clock = clock
        self._answered = self._wasted = 0
        self.pays: bool | None = None if clock_is_free else True
        """None until it is known."""

    def was_wasteful(self) -> None:
        """A search gave the precision up because it spared less than it took; after the second none begins with it."""
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
        """Decides, by running one input twice.

        Args:
            one_input: runs it in the low precision; may raise `TooSlow` once the clock has reached its argument.
            seconds_in_float32: that an input takes.
        """
        self.pays = all(self._within(allowance * seconds_in_float32, one_input) for allowance in (ALLOWANCE, 1.0))

    def _within(self, seconds: float, one_input: Callable[[float], None]) -> bool:
        begin = self._clock()
        try:
            one_input(begin + seconds)
        except TooSlow:
            return False
        return self._clock() - begin <= seconds
