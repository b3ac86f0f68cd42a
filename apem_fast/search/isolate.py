"""The first flip from a few probes: margins bound the interval between two of them (Shubert and Piyavskii)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apem_fast.search.policy import CENSORED, UNDECIDED, Margins, Measured, Probes, Rows, State, Steps

STEEPEST_SHARE = 0.5  # how far slopes may leave the range of those seen where these are all alike
AHEAD = 8  # steps of a ray that are remembered from before they were wanted
BEND = 1.5  # how much steeper or flatter than over the last interval a margin is taken to go on
NOWHERE = 1 << 40  # a step beyond any grid
SPARE = 16  # a batch with room for so many times the probes that are needed costs the same with a few more


def lowest_margin(
    safety: Margins | float,
    start: Margins,
    end: Margins,
    length: NDArray,
    left: Margins,
    right: Margins,
    unexplained: Margins | float = 0.0,
) -> tuple[Margins, Margins]:
    """How low a margin may be between two steps, and after which share of the way it would be there.

    Piyavskii's bound, with a range of slopes in place of one steepest slope. Three falls a step are known: of the
    interval itself, of the one to its `left` and of the one to its `right` (NaN: not known). Within the interval the
    fall is taken to lie within these, and further out on either side by the largest of `safety` times their spread,
    half the steepest of them, and `unexplained`. So a margin that falls evenly to a positive value is known not to have
    been negative on the way, while one that bends could have been.
    """
    fall = (start - end) / length
    least, most = np.fmin.reduce([fall, left, right]), np.fmax.reduce([fall, left, right])
    further = np.maximum(safety * (most - least), STEEPEST_SHARE * np.maximum(np.abs(most), np.abs(least)))
    further = np.fmax(further, unexplained)
    least, most = least - further, most + further
    # From the start it falls at the most, from the end it rises backwards at the least: where these two meet.
    width = most - least
    share = np.where(width > 0, (fall - least) / np.where(width > 0, width, 1), 0.0)
    return start - most * length * share, share


def unexplained_bend(falls: Sequence[Margins], middles: Sequence[NDArray]) -> Margins:
    """How far neighbouring falls are from lying on one straight line, the worst of every three in a row; NaN where
    there are no three.

    A margin that flattens evenly has falls on a line, however steep that is; where probes are too far apart to show
    what the margin does, they are not.
    """
    worst = np.full(len(falls[0]), np.nan)
    for i in range(len(falls) - 2):
        (a, b, c), (x, y, z) = falls[i : i + 3], middles[i : i + 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            worst = np.fmax(worst, np.abs(b - (a + (c - a) * (y - x) / (z - x))))
    return worst


@dataclass(frozen=True)
class IsolateState(State):
    """Up to `cleared` no step can flip. To its right lie measured points, nearest last: a stack per ray."""

    cleared: Steps  # [rows]
    margin: Margins  # [rows], at `cleared`
    fall: Margins  # [rows], of the margin over the last cleared interval, a step
    length: Steps  # [rows], of that interval; 0 where the fall is the slope at 0
    fall_before: Margins  # [rows], over the cleared interval before it; NaN where there is none
    length_before: Steps  # [rows], of that one
    point_step: Steps  # [rows, depth]
    point_margin: Margins  # [rows, depth]
    points: Steps  # [rows], how many of them are in use; only the deepest can be flipped
    ahead_step: Steps  # [rows, AHEAD], measured before they were wanted; 0: none
    ahead_margin: Margins  # [rows, AHEAD]
    ahead_flipped: NDArray[np.bool_]  # [rows, AHEAD]


@dataclass(frozen=True)
class Isolate:
    """The first flip from a few probes, by Shubert and Piyavskii's method.

    `lowest_margin` bounds the margin between two measured steps from the slopes seen there and on either side: local,
    because margins flatten by orders of magnitude along a ray. What counts is how far these slopes are from changing
    evenly (`unexplained_bend`); where the margin turns from falling to rising, their whole spread counts. Intervals
    that could hide a flip are split where the bound is lowest, leftmost first, so what is found is the first flip and
    not just a flip. Where nothing is measured yet, and between a margin and a flip, the search aims at the step before
    the one where the margin would flip if it went on like this.

    What it cannot see is a dip between two probes that leaves no trace at them, so no interval is longer than `flat`
    steps where the margin stays the same over it, up to `steep` steps where it falls to nothing, or than `growth`
    times its distance from 0, whichever is most. All these are steps of the grid and none depends on where the search
    may end: it may look beyond the last step, so that no answer before it depends on the limit. Neither does one depend
    on what else is in a batch: where there is room, steps are measured ahead, and used once the search wants them.

    The default missed no flip of some 5,000 real rays of ten networks, at 7.1 probes a ray on photographs. Of scripted
    curves of 1,024 steps, made to be harder (`bench/margin_curves.py`), it missed .5 % of smooth ones of length 1/16 of
    the ray and 3.5 % of length 1/32, 2.5 % of single dips 1/8 of the ray wide, 15 % of 1/16 and 41 % of 1/32, .2 % of
    those with jumps and .3 % of decays with a sinus. `search="fast"` and `search="careful"` are other settings, at 6.3
    and 10.9 probes on the photographs; the same curves, in the same order: 2.6, 5.5, 14, 41, 72, 1.3 and 1.0 %; 0, .7,
    0, 2.6, 20, .1 and 0 %.

    Args:
        safety: by how many times the unexplained bend a slope may leave the range of those nearby; a larger factor is
            safer and probes more.
        spread: the same for the spread of these slopes.
        flat: steps, the longest interval over which the margin stays the same.
        steep: steps, the longest interval over which the margin falls to nothing.
        growth: share of its distance from 0 that an interval may have in any case.
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
        # Where batches would be almost empty, also the step after, where a good guess ends, and half way on either
        # side; between a step and nothing, half way is the middle of a stride that would be as long.
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
        # Where a caller measured other steps than were asked, they count as wanted.
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
        """Keeps what was measured before it was wanted, in place of the oldest."""
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
        """Goes on for as long as the step that is wanted next has been measured ahead."""
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
        """How many steps the interval up to a margin may have."""
        start = state.margin[row]
        share = np.clip(margin, 0, start) / np.maximum(start, np.finfo(np.float64).tiny)
        fallen = np.where(margin > start, 0, 1 - share)
        return np.maximum(self.flat + (self.steep - self.flat) * fallen, self.growth * state.cleared[row])

    def _lowest(self, state: IsolateState, row: Rows, margin: Margins, length: Steps) -> tuple[Margins, Margins]:
        """`lowest_margin` of the interval up to the nearest point, with what is known on either side of it."""
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
        # A margin that falls and rises again has its least value hereabouts: no bend is taken for granted.
        falls = np.stack([left, (start - margin) / length, right])
        turns = (np.fmin.reduce(falls) < 0) & (np.fmax.reduce(falls) > 0)
        spread = np.where(turns, max(self.safety, self.spread), self.spread)
        return lowest_margin(spread, start, margin, length, left, right, self.safety * bend)

    def _next_step(self, state: IsolateState, row: Rows) -> tuple[Steps, Steps, Steps]:
        """The steps up to which rays are cleared, those to measure next, and those where the next points are."""
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
        """How fast the margin falls at `cleared`, as the bend between the last two intervals has it, within bounds."""
        fall, before = state.fall[row], state.fall_before[row]
        between = np.maximum(state.length[row] + state.length_before[row], 1)
        ahead = np.clip(fall - (before - fall) * state.length[row] / between, fall / BEND, fall * BEND)
        return np.where(np.isnan(before) | (fall <= 0), fall, ahead)

    def _stride(self, straight: NDArray[np.float64], start: Steps) -> NDArray[np.float64]:
        """The longest interval that may be cleared if the margin goes straight to 0 after so many steps."""
        falling = np.minimum((self.steep - self.flat) / np.maximum(straight, 1), 1 - 1e-9)
        return np.maximum(np.minimum(self.flat / (1 - falling), self.steep), self.growth * start)
