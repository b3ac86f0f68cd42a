"""The first flip from a few probes: margins bound the interval between two of them (Shubert and Piyavskii)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apem_fast.search.policy import CENSORED, Margins, Measured, Probes, Rows, State, Steps

STEEPEST_SHARE = 0.5  # how far slopes may leave the range of those seen where these are all alike
SPARE = 16  # a batch with room for so many times the probes that are needed costs the same with a few more


def lowest_margin(
    safety: float, start: Margins, end: Margins, length: NDArray, left: Margins, right: Margins
) -> tuple[Margins, Margins]:
    """How low a margin may be between two steps, and after which share of the way it would be there.

    Piyavskii's bound, with a range of slopes in place of one steepest slope. Three falls a step are known: of the
    interval itself, of the one to its `left` and of the one to its `right` (NaN: not known). Within the interval the
    fall is taken to lie within these, and further out on either side by the larger of `safety` times their spread and
    half the steepest of them. So a margin that falls evenly to a positive value is known not to have been negative on
    the way, while one that bends could have been.
    """
    fall = (start - end) / length
    least, most = np.fmin.reduce([fall, left, right]), np.fmax.reduce([fall, left, right])
    further = np.maximum(safety * (most - least), STEEPEST_SHARE * np.maximum(np.abs(most), np.abs(least)))
    least, most = least - further, most + further
    # From the start it falls at the most, from the end it rises backwards at the least: where these two meet.
    width = most - least
    share = np.where(width > 0, (fall - least) / np.where(width > 0, width, 1), 0.0)
    return start - most * length * share, share


@dataclass(frozen=True)
class IsolateState(State):
    """Up to `cleared` no step can flip. To its right lie measured points, nearest last: a stack per ray."""

    cleared: Steps  # [rows]
    margin: Margins  # [rows], at `cleared`
    fall: Margins  # [rows], of the margin over the last cleared interval, a step
    point_step: Steps  # [rows, depth]
    point_margin: Margins  # [rows, depth]
    points: Steps  # [rows], how many of them are in use; only the deepest can be flipped


@dataclass(frozen=True)
class Isolate:
    """The first flip from a few probes, by Shubert and Piyavskii's method.

    `lowest_margin` bounds the margin between two measured steps from the slopes seen there and on either side: local,
    because margins flatten by orders of magnitude along a ray. Intervals that could hide a flip are split where the
    bound is lowest, leftmost first, so what is found is the first flip and not just a flip. Where nothing is measured
    yet, and between a margin and a flip, the search aims at the step before the one where a straight line would flip:
    on a ray without bends two probes answer, whatever the distance.

    Args:
        safety: by how many times the spread of the slopes seen nearby a slope may leave their range; a larger
            factor is safer and probes more.
        longest: no interval longer than this share of the grid counts as cleared, whatever its margins.
        depth: how many measured points to the right are remembered for each ray.
    """

    safety: float = 4.0
    longest: float = 1 / 8
    depth: int = 16

    def __post_init__(self) -> None:
        if not self.safety > 1:
            raise ValueError(f"Isolate: safety must be greater than 1 (got {self.safety:g})")
        if not 0 < self.longest <= 1:
            raise ValueError(f"Isolate: longest must lie in (0, 1] (got {self.longest:g})")
        if self.depth < 2:
            raise ValueError(f"Isolate: depth must be at least 2 (got {self.depth})")

    def start(self, margin: Margins, slope: Margins, last_step: int) -> IsolateState:
        rays = len(margin)
        return IsolateState(
            first_flip=np.zeros(rays, np.int64),
            last_step=last_step,
            cleared=np.zeros(rays, np.int64),
            margin=np.asarray(margin, np.float64).copy(),
            fall=np.asarray(slope, np.float64).copy(),
            point_step=np.zeros((rays, self.depth), np.int64),
            point_margin=np.zeros((rays, self.depth)),
            points=np.zeros(rays, np.int64),
        )

    def resume(
        self, cleared: int, margin: float, slope: float, last_step: int, measured: Sequence[tuple[int, float, bool]]
    ) -> IsolateState:
        """State of one ray of which something is known: no flip up to `cleared`, and (step, margin, flipped) beyond."""
        state = self.start(np.array([margin]), np.array([slope]), last_step)
        state.cleared[0] = cleared
        step, at, flipped = (np.array(column) for column in zip(*measured)) if measured else (np.zeros(0),) * 3
        self._push(state, Measured(np.zeros(len(step), np.int64), step.astype(np.int64), at, flipped.astype(bool)))
        self._clear(state, np.zeros(1, np.int64))
        return state

    def ask(self, state: IsolateState, room: int) -> Probes:
        row = state.undecided
        start, step, end = self._next_step(state, row)
        each = int(np.clip(room // (SPARE * max(1, len(row))), 1, 4))
        # Where passes would be almost empty, also the step after, where a good guess ends, and half way on either side.
        further = np.stack([step, step + 1, (start + step) // 2, (step + end) // 2], axis=1)[:, :each]
        further = np.sort(further, axis=1)
        new = (further > start[:, None]) & (further < end[:, None])
        new[:, 1:] &= further[:, 1:] != further[:, :-1]
        return Probes(np.broadcast_to(row[:, None], further.shape)[new], further[new])

    def tell(self, state: IsolateState, measured: Measured) -> IsolateState:
        state = dataclasses.replace(
            state, **{f.name: getattr(state, f.name).copy() for f in dataclasses.fields(state) if f.name != "last_step"}
        )
        self._push(state, measured)
        self._clear(state, np.unique(measured.row))
        return state

    # The two below change the arrays of a state that `tell` has just made its own.

    def _push(self, state: IsolateState, measured: Measured) -> None:
        """Puts points onto their rays' stacks, the farthest first, all of them nearer than what is there."""
        order = np.lexsort((-measured.step, measured.row))
        row = measured.row[order]
        turn = np.arange(len(row)) - np.searchsorted(row, row)
        for t in range(turn.max(initial=-1) + 1):
            self._push_one(state, measured.only(order[turn == t]))

    def _push_one(self, state: IsolateState, measured: Measured) -> None:
        row = measured.row
        state.points[row[measured.flipped]] = 0  # what lies beyond a flip no longer matters
        full = row[state.points[row] == self.depth]
        if len(full):  # forget the farthest point: it may be measured again, nothing is decided by it
            state.point_step[full, :-1] = state.point_step[full, 1:]
            state.point_margin[full, :-1] = state.point_margin[full, 1:]
            state.points[full] -= 1
        at = state.points[row]
        state.point_step[row, at] = measured.step
        # A flip at a margin of exactly 0 (a tie won by another class) still is one.
        tie = np.finfo(np.float64).tiny
        state.point_margin[row, at] = np.where(
            measured.flipped, np.minimum(measured.margin, -tie), np.maximum(measured.margin, 0)
        )
        state.points[row] += 1

    def _clear(self, state: IsolateState, row: Rows) -> None:
        """Moves `cleared` over every interval that cannot hide a flip, and decides the rays that are done."""
        while len(row):
            row = row[state.points[row] > 0]
            top = state.points[row] - 1
            step, margin = state.point_step[row, top], state.point_margin[row, top]
            length = step - state.cleared[row]
            flipped = margin < 0
            done = flipped & (length == 1)
            state.first_flip[row[done]] = step[done]
            lowest, _ = self._lowest(state, row, margin, length)
            safe = (lowest > 0) & (length <= self._longest_interval(state))
            passed = ~flipped & (safe | (length == 1))
            state.fall[row[passed]] = ((state.margin[row] - margin) / length)[passed]
            row, top = row[passed], top[passed]
            state.cleared[row], state.margin[row], state.points[row] = step[passed], margin[passed], top
            at_end = row[state.cleared[row] == state.last_step]
            state.first_flip[at_end] = CENSORED

    def _longest_interval(self, state: IsolateState) -> int:
        return max(1, int(self.longest * state.last_step))

    def _lowest(self, state: IsolateState, row: Rows, margin: Margins, length: Steps) -> tuple[Margins, Margins]:
        """`lowest_margin` of the interval up to the nearest point, with what is known on either side of it."""
        two = state.points[row] > 1
        near = np.maximum(state.points[row] - 1, 1)
        beyond = state.point_step[row, near - 1] - state.point_step[row, near]
        right = (state.point_margin[row, near] - state.point_margin[row, near - 1]) / np.where(two, beyond, 1)
        return lowest_margin(
            self.safety, state.margin[row], margin, length, state.fall[row], np.where(two, right, np.nan)
        )

    def _next_step(self, state: IsolateState, row: Rows) -> tuple[Steps, Steps, Steps]:
        """The steps up to which rays are cleared, those to measure next, and those where the next points are."""
        start, margin = state.cleared[row], state.margin[row]
        has_point = state.points[row] > 0
        top = np.maximum(state.points[row] - 1, 0)
        end = np.where(has_point, state.point_step[row, top], state.last_step + 1)
        end_margin = state.point_margin[row, top]
        length = end - start
        between = has_point & (end_margin >= 0)  # two positive margins
        fall = np.where(has_point, (margin - end_margin) / length, state.fall[row])
        _, share = self._lowest(state, row, end_margin, length)
        straight = np.floor(np.where(fall > 0, margin / np.where(fall > 0, fall, 1), length))
        stride = np.where(between, np.round(share * length), np.minimum(straight, self._longest_interval(state)))
        return start, start + np.clip(stride, 1, length - 1).astype(np.int64), end
