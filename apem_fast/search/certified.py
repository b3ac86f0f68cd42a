"""A search that proves its answers: it chooses the segments of a ray to bound, and the points to compute."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from apem_fast.search.isolate import Isolate
from apem_fast.search.policy import Margins, Measured, Probes, Search, State

Segment = tuple[int, int]
"""The steps from the first to the second, inclusive."""

MOST_PIECES = 16  # the most pieces into which a segment is split at once
CLOSE = 0.8  # the expected distance of a bound from the margin on a piece, as a share of the margin


@dataclass(frozen=True)
class Certified:
    """Proves that the flips which another search found are the first ones.

    Every step before a flip is proved not to flip, and the flip itself is confirmed by the answer of record. Bounds on
    the margin over whole segments of the ray prove most steps, many at a time. A segment whose bound is too low is
    split; short segments are computed point by point. So every answer is proved, for every network. How long it takes
    depends on the network: from some dozens of segments for each ray to a scan of every grid point.

    The network may have convolutions, linear layers, batch norm, pooling, ReLU, ReLU6, leaky ReLU and sums; the error
    names any other operation. The proof is about the answer of record in float64 and includes all its rounding errors;
    see docs/exactness.md.

    Args:
        search: finds the flips that are to be proved.
        asked: a segment of no more steps than this is not split; its points are computed.
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
        """Shorter pieces of a segment, in order, for which bounds may suffice; the segment itself if it is short.

        The distance between a bound and the margin comes from bends within the segment, and grows with the square of
        its length.

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
