"""Finds the first flip with few probes: the margins at two probes bound the margin between them.

The method is Shubert's and Piyavskii's, with the slope estimated on the ray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apem_fast.search.policy import CENSORED, UNDECIDED, Margins, Measured, Probes, Rows, State, Steps

STEEPEST_SHARE = 0.5  # slopes may leave the range seen by this share of the steepest, even if all seen are equal
AHEAD = 8  # how many steps measured ahead are remembered for each ray
BEND = 1.5  # the margin is assumed to go on at most so many times steeper or flatter than over the last interval
NOWHERE = 1 << 40  # a step beyond any grid
SPARE = 16  # a batch that holds so many times the needed probes takes no longer with a few more


def lowest_margin(
    safety: Margins | float,
    start: Margins,
    end: Margins,
    length: NDArray[Any],
    left: Margins,
    right: Margins,
    unexplained: Margins | float = 0.0,
) -> tuple[Margins, Margins]:
    """How low a margin may be between two steps, and at which share of the interval it would be so low.

    This is Piyavskii's bound with a range of slopes instead of one steepest slope. Up to three falls per step are
    known: of the interval itself, of the interval to its `left` and of that to its `right` (NaN if not known). Within
    the interval the fall is assumed to lie in the range of these, widened on either side by the largest of `safety`
    times its width, half the steepest of them, and `unexplained`. So a margin that falls evenly to a positive value
    cannot have been negative on the way, while one that bends could.
    """
    fall = (start - end) / length
    least, most = np.fmin.reduce([fall, left, right]), np.fmax.reduce([fall, left, right])
    further = np.maximum(safety * (most - least), STEEPEST_SHARE * np.maximum(np.abs(most), np.abs(least)))
    further = np.fmax(further, unexplained)
    least, most = least - further, most + further
    # The steepest line from the start and the flattest line to the end meet at the lowest point.
    width = most - least
    share = np.where(width > 0, (fall - least) / np.where(width > 0, width, 1), 0.0)
    return start - most * length * share, share


def unexplained_bend(falls: Sequence[Margins], middles: Sequence[NDArray[Any]]) -> Margins:
    """How far neighbouring falls deviate from a straight line: the worst of every three in a row; NaN without three.

    The falls of a margin that flattens evenly lie on a line, however steep. If probes are too far apart to show how the
    margin behaves, they do not.
    """
    worst = np.full(len(falls[0]), np.nan)
    for i in range(len(falls) - 2):
        (a, b, c), (x, y, z) = falls[i : i + 3], middles[i : i + 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            worst = np.fmax(worst, np.abs(b - (a + (c - a) * (y - x) / (z - x))))
    return worst


@dataclass(frozen=True)
class IsolateState(State):
    """Up to `cleared` no step is flipped. Measured points to its right are a stack for each ray, the nearest on top."""

    cleared: Steps  # [rows]
    margin: Margins  # [rows], at `cleared`
    fall: Margins  # [rows], of the margin per step over the last cleared interval
    length: Steps  # [rows], of that interval; 0 if the fall is the slope at 0
    fall_before: Margins  # [rows], over the cleared interval before it; NaN if there is none
    length_before: Steps  # [rows], of that interval
    point_step: Steps  # [rows, depth]
    point_margin: Margins  # [rows, depth]
    points: Steps  # [rows], how many points are in use; only the farthest can be flipped
    ahead_step: Steps  # [rows, AHEAD], measured before the search wanted them; 0: none
    ahead_margin: Margins  # [rows, AHEAD]
    ahead_flipped: NDArray[np.bool_]  # [rows, AHEAD]


@dataclass(frozen=True)
class Isolate:
    """Finds the first flip with few probes, by Shubert's and Piyavskii's method.

    `lowest_margin` bounds the margin between two measured steps, from the slopes there and on either side. The slopes
    are local, because margins flatten by orders of magnitude along a ray. They may leave the range seen by a multiple
    of their deviation from an even change (`unexplained_bend`), or of their whole spread if the margin turns from
    falling to rising. Intervals that could hide a flip are split where the bound is lowest, the leftmost first, so that
    the first flip is found and not just any flip. Beyond the last probe, and between a margin and a flip, the search
    extrapolates and probes the step before the expected flip.

    The search cannot see a dip between two probes that leaves no trace at them. So the length of intervals is limited:
    to `flat` steps if the margin stays the same, up to `steep` steps if it falls to nothing, or to `growth` times the
    distance from 0, whichever is greatest. These are steps of the grid, and none depends on the end of the grid: the
    search may look beyond the last step, so that no answer before it depends on the limit. Nor does an answer depend on
    the rest of a batch: if there is room, steps are measured ahead, but used only when the search wants them.

    The default missed no flip of some 5,000 real rays of ten networks, with 7.1 probes for each ray on photographs.
    Scripted curves of 1,024 steps (`bench/margin_curves.py`) are harder. The share of them that each setting missed, in
    percent, and its probes for each ray on the photographs:

    | setting | smooth, 1/16 | smooth, 1/32 | dip, 1/8 | dip, 1/16 | dip, 1/32 | jumps | decays | probes |
    |---|---|---|---|---|---|---|---|---|
    | isolate | 0.5 | 3.5 | 2.5 | 15 | 41 | 0.2 | 0.3 | 7.1 |
    | fast | 2.6 | 5.5 | 14 | 41 | 72 | 1.3 | 1.0 | 6.3 |
    | careful | 0 | 0.7 | 0 | 2.6 | 20 | 0.1 | 0 | 10.9 |

    The fractions are the length of smooth curves, and the width of single dips, as shares of the ray. Decays have a
    sine added.

    Args:
        safety: slopes may leave the range of nearby slopes by so many times the unexplained bend; a larger factor is
            safer and takes more probes.
        spread: the same, as a multiple of the spread of these slopes.
        flat: the longest interval, in steps, over which the margin stays the same.
        steep: the longest interval, in steps, over which the margin falls to nothing.
        growth: an interval may always have this share of its distance from 0.
        depth: how many measured points to the right are remembered for each ray.
    """

    safety: float = 5.0
    spread: float = 0.5
    flat: int = 64
    steep: int = 256
    growth: float = 0.22
    depth: int = 16

    def __post_init__(self) -> None:
        if not self.safety > 1:
            raise ValueError(f"Isolate: safety must be greater than 1 (got {self.safety:g})")
        if not self.spread >= 0:
            raise ValueError(f"Isolate: spread must be at least 0 (got {self.spread:g})")
        if not 1 <= self.flat <= self.steep:
            raise ValueError(f"Isolate: flat must be at least 1 and at most steep={self.steep:g} (got {self.flat:g})")
        if not 0 <= self.growth <= 1:
            raise ValueError(f"Isolate: growth must lie in [0, 1] (got {self.growth:g})")
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
            length=np.zeros(rays, np.int64),
            fall_before=np.full(rays, np.nan),
            length_before=np.zeros(rays, np.int64),
            point_step=np.zeros((rays, self.depth), np.int64),
            point_margin=np.zeros((rays, self.depth)),
            points=np.zeros(rays, np.int64),
            ahead_step=np.zeros((rays, AHEAD), np.int64),
            ahead_margin=np.zeros((rays, AHEAD)),
            ahead_flipped=np.zeros((rays, AHEAD), bool),
        )

    def finer(self, spread: float) -> Isolate:
        return dataclasses.replace(self, spread=spread)

    def resume(
        self, cleared: int, margin: float, slope: float, last_step: int, measured: Sequence[tuple[int, float, bool]]
    ) -> IsolateState:
        """The state of one ray without a flip up to `cleared`, with known points (step, margin, flipped) beyond it."""
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
        # If batches would be almost empty, also the next step, where a good guess ends, and the middle on either side;
        # beyond the last point, the middle of a stride of the same length.
        end = np.minimum(end, 2 * step - start)
        further = np.stack([step, step + 1, (start + step) // 2, (step + end) // 2], axis=1)[:, :each]
        known = (further[:, :, None] == state.ahead_step[row][:, None, :]).any(axis=2)
        inside = (further > start[:, None]) & (further < end[:, None]) & (further <= state.last_step) & ~known
        inside[:, 0] = True
        further = np.sort(np.where(inside, further, 0), axis=1)
        new = further > 0
        new[:, 1:] &= further[:, 1:] != further[:, :-1]
        return Probes(np.broadcast_to(row[:, None], further.shape)[new], further[new])

    def tell(self, state: IsolateState, measured: Measured) -> IsolateState:
        state = dataclasses.replace(
            state, **{f.name: getattr(state, f.name).copy() for f in dataclasses.fields(state) if f.name != "last_step"}
        )
        told = np.unique(measured.row)
        _, wanted, _ = self._next_step(state, told)
        asked = np.zeros(len(state.first_flip), np.int64)
        asked[told] = wanted
        is_wanted = measured.step == asked[measured.row]
        # If a caller measured other steps than were asked for, they count as wanted.
        has_wanted = np.zeros(len(state.first_flip), bool)
        has_wanted[measured.row[is_wanted]] = True
        now = is_wanted | ~has_wanted[measured.row]
        self._push(state, measured.only(np.flatnonzero(now)))
        self._clear(state, told)
        self._keep(state, measured.only(np.flatnonzero(~now)))
        self._use(state, told)
        return state

    # The ones below change the arrays of a state that `tell` has just made its own.

    def _keep(self, state: IsolateState, measured: Measured) -> None:
        """Keeps steps that were measured ahead, in place of the oldest."""
        turn = np.arange(len(measured.row)) - np.searchsorted(measured.row, measured.row)
        for t in range(turn.max(initial=-1) + 1):
            row, step, margin, flipped = measured.only(np.flatnonzero(turn == t))
            for kept, value in (
                (state.ahead_step, step),
                (state.ahead_margin, margin),
                (state.ahead_flipped, flipped),
            ):
                kept[row, 1:] = kept[row, :-1]
                kept[row, 0] = value

    def _use(self, state: IsolateState, row: Rows) -> None:
        """Continues while the next step that the search wants was measured ahead."""
        while True:
            row = row[state.first_flip[row] == UNDECIDED]
            _, wanted, _ = self._next_step(state, row)
            there = state.ahead_step[row] == wanted[:, None]
            row, there, wanted = row[there.any(axis=1)], there[there.any(axis=1)], wanted[there.any(axis=1)]
            if not len(row):
                return
            at = there.argmax(axis=1)
            self._push(state, Measured(row, wanted, state.ahead_margin[row, at], state.ahead_flipped[row, at]))
            self._clear(state, row)

    def _push(self, state: IsolateState, measured: Measured) -> None:
        """Puts points onto their rays' stacks, the farthest first; all are nearer than the points that are there."""
        order = np.lexsort((-measured.step, measured.row))
        row = measured.row[order]
        turn = np.arange(len(row)) - np.searchsorted(row, row)
        for t in range(turn.max(initial=-1) + 1):
            self._push_one(state, measured.only(order[turn == t]))

    def _push_one(self, state: IsolateState, measured: Measured) -> None:
        row = measured.row
        state.points[row[measured.flipped]] = 0  # points beyond a flip no longer matter
        full = row[state.points[row] == self.depth]
        if len(full):  # forget the farthest point, which may be measured again
            state.point_step[full, :-1] = state.point_step[full, 1:]
            state.point_margin[full, :-1] = state.point_margin[full, 1:]
            state.points[full] -= 1
        at = state.points[row]
        state.point_step[row, at] = measured.step
        # A margin of exactly 0 is a flip if another class wins the tie.
        tie = np.finfo(np.float64).tiny
        state.point_margin[row, at] = np.where(
            measured.flipped, np.minimum(measured.margin, -tie), np.maximum(measured.margin, 0)
        )
        state.points[row] += 1

    def _clear(self, state: IsolateState, row: Rows) -> None:
        """Moves `cleared` past every interval that cannot hide a flip, and decides the rays that are done."""
        while len(row):
            row = row[state.points[row] > 0]
            top = state.points[row] - 1
            step, margin = state.point_step[row, top], state.point_margin[row, top]
            length = step - state.cleared[row]
            flipped = margin < 0
            done = flipped & (length == 1)
            state.first_flip[row[done]] = np.where(step <= state.last_step, step, CENSORED)[done]
            lowest, _ = self._lowest(state, row, margin, length)
            safe = (lowest > 0) & (length <= self._longest(state, row, margin))
            passed = ~flipped & (safe | (length == 1))
            fall = (state.margin[row] - margin) / length
            row, top, step, margin, length, fall = (a[passed] for a in (row, top, step, margin, length, fall))
            state.fall_before[row], state.length_before[row] = state.fall[row], state.length[row]
            state.fall[row], state.length[row] = fall, length
            state.cleared[row], state.margin[row], state.points[row] = step, margin, top
            at_end = state.cleared[row] >= state.last_step
            state.first_flip[row[at_end]] = CENSORED
            row = row[~at_end]

    def _longest(self, state: IsolateState, row: Rows, margin: Margins) -> NDArray[np.float64]:
        """The greatest number of steps that the interval up to a margin may have."""
        start = state.margin[row]
        share = np.clip(margin, 0, start) / np.maximum(start, np.finfo(np.float64).tiny)
        fallen = np.where(margin > start, 0, 1 - share)
        return np.maximum(self.flat + (self.steep - self.flat) * fallen, self.growth * state.cleared[row])

    def _lowest(self, state: IsolateState, row: Rows, margin: Margins, length: Steps) -> tuple[Margins, Margins]:
        """`lowest_margin` of the interval up to the nearest point, with the slopes known on either side."""
        two = state.points[row] > 1
        near = np.maximum(state.points[row] - 1, 1)
        beyond = np.where(two, state.point_step[row, near - 1] - state.point_step[row, near], 1)
        right = (state.point_margin[row, near] - state.point_margin[row, near - 1]) / beyond
        right = np.where(two, right, np.nan)
        start, left = state.margin[row], state.fall[row]
        bend = unexplained_bend(
            (state.fall_before[row], left, (start - margin) / length, right),
            (
                -state.length[row] - state.length_before[row] / 2,
                -state.length[row] / 2,
                length / 2,
                length + beyond / 2,
            ),
        )
        # A margin that falls and rises again has its least value near here, so the whole spread counts.
        falls = np.stack([left, (start - margin) / length, right])
        turns = (np.fmin.reduce(falls) < 0) & (np.fmax.reduce(falls) > 0)
        spread = np.where(turns, max(self.safety, self.spread), self.spread)
        return lowest_margin(spread, start, margin, length, left, right, self.safety * bend)

    def _next_step(self, state: IsolateState, row: Rows) -> tuple[Steps, Steps, Steps]:
        """The steps up to which rays are cleared, the steps to measure next, and the steps of the next points."""
        start, margin = state.cleared[row], state.margin[row]
        has_point = state.points[row] > 0
        top = np.maximum(state.points[row] - 1, 0)
        end = np.where(has_point, state.point_step[row, top], NOWHERE)
        end_margin = state.point_margin[row, top]
        length = end - start
        between = has_point & (end_margin >= 0)  # two positive margins
        fall = np.where(has_point, (margin - end_margin) / length, self._fall_ahead(state, row))
        _, share = self._lowest(state, row, end_margin, length)
        straight = np.floor(np.where(fall > 0, margin / np.where(fall > 0, fall, 1), NOWHERE))
        reach = np.where(has_point, straight, np.minimum(straight, self._stride(straight, start)))
        stride = np.where(between, np.round(share * length), reach)
        return start, start + np.clip(stride, 1, length - 1).astype(np.int64), end

    def _fall_ahead(self, state: IsolateState, row: Rows) -> Margins:
        """The fall per step at `cleared`, extrapolated from the last two intervals, within limits."""
        fall, before = state.fall[row], state.fall_before[row]
        between = np.maximum(state.length[row] + state.length_before[row], 1)
        ahead = np.clip(fall - (before - fall) * state.length[row] / between, fall / BEND, fall * BEND)
        return np.where(np.isnan(before) | (fall <= 0), fall, ahead)

    def _stride(self, straight: NDArray[np.float64], start: Steps) -> NDArray[np.float64]:
        """The longest interval that could be cleared if the margin fell straight to 0 in so many steps."""
        falling = np.minimum((self.steep - self.flat) / np.maximum(straight, 1), 1 - 1e-9)
        return np.maximum(np.minimum(self.flat / (1 - falling), self.steep), self.growth * start)
