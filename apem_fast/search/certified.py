"""A search whose answers are proved: which segments of a ray to bound, and which of their points to ask."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from apem_fast.search.isolate import Isolate
from apem_fast.search.policy import Margins, Measured, Probes, Search, State

Segment = tuple[int, int]
"""The steps from the first to the second, both included."""

MOST_PIECES = 16  # that a segment is split into at once
CLOSE = 0.8  # how near to the bound that is just good enough pieces are aimed


@dataclass(frozen=True)
class Certified:
    """The flips of another search, each of them proved to be the first.

    Every step before a flip is proved free of one, and the flip itself is asked of the answer of record. Bounds of the
    margin on whole segments of the ray prove most steps, many at a time; a segment whose bound is too low is split, and
    at last its points are asked one by one. So every answer is proved, whatever the network; what the network decides
    is how long it takes, from some dozens of segments a ray to a scan of every grid point.

    The network may have convolutions, linear layers, batch norm, pooling, ReLU, ReLU6, leaky ReLU and sums; another
    operation is refused by name. What is proved is about the answer of record in float64, in which every rounding is
    accounted for; see docs/exactness.md.

    Args:
        search: finds the flips that are to be proved.
        asked: steps; a segment with no more is not split: its points are asked.
    """

    search: Search[Any] = field(default_factory=Isolate)
    asked: int = 4

    def __post_init__(self) -> None:
        if self.asked < 1:
            raise ValueError(f"Certified: asked must be at least 1 (got {self.asked})")

    def start(self, margin: Margins, slope: Margins, last_step: int) -> State:
        return self.search.start(margin, slope, last_step)

    def ask(self, state: State, room: int) -> Probes:
        return self.search.ask(state, room)

    def tell(self, state: State, measured: Measured) -> State:
        return self.search.tell(state, measured)

    def split(self, segment: Segment, lowest: float, middle: float) -> list[Segment]:
        """Pieces of a segment that may well be bounded, in order; itself where its points are to be asked.

        A bound falls below the margin by what bends within the segment adds, which goes with the square of the length.

        Args:
            lowest: the bound that was too low.
            middle: the margin in the segment's middle.
        """
        first, last = segment
        steps = last - first + 1
        if steps <= self.asked:
            return [segment]
        wanted = math.sqrt((middle - lowest) / (CLOSE * middle)) if middle > 0 else 2.0
        pieces = min(max(2, math.ceil(min(wanted, MOST_PIECES))), steps)
        ends = [first - 1 + steps * i // pieces for i in range(pieces + 1)]
        return [(a + 1, b) for a, b in pairwise(ends)]
