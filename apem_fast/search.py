"""Which epsilon to probe next: search policies that know nothing of models.

Epsilons are grid steps here, whole numbers from 1 to `last_step` (epsilon = k * step; the margin at k = 0 is known).
A policy is an immutable record of options. It keeps a few rays at a time, one per row of its state, and takes two
pure steps: `ask` names the probes it wants next, `tell` takes the margins that were measured there and returns the
new state. A ray is decided when `state.first_flip` is no longer UNDECIDED: the least step at which the prediction
was no longer the label, or CENSORED where the search reached `last_step` without one.

Because a policy sees margins only, it is tested with scripted margin curves and no network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Margins = NDArray[np.float64]
Rows = NDArray[np.int64]

UNDECIDED = 0  # no ray flips at step 0: the label is the prediction there
CENSORED = -1


class Probes(NamedTuple):
    """Points that a policy wants measured: `step[i]` on the ray in row `row[i]`."""

    row: Rows
    step: Steps


class Measured(NamedTuple):
    """What came of probes: the margins, and whether the prediction was no longer the label."""

    row: Rows
    step: Steps
    margin: Margins
    flipped: NDArray[np.bool_]


@dataclass(frozen=True)
class State:
    """What a policy knows of the rays in its rows; subclasses add arrays whose first axis is the row."""

    first_flip: Steps  # [rows]: UNDECIDED, CENSORED or the answer
    last_step: int

    @property
    def undecided(self) -> Rows:
        return np.flatnonzero(self.first_flip == UNDECIDED)

    def with_rows(self, rows: Rows, other: Self) -> Self:
        """This state with `other`'s rows in place of `rows`: finished rays make room for waiting ones."""
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value = value.copy()
                value[rows] = getattr(other, field.name)
            changed[field.name] = value
        return type(self)(**changed)

    def only(self, rows: Rows) -> Self:
        """This state with `rows` alone."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return type(self)(**{k: v[rows] if isinstance(v, np.ndarray) else v for k, v in fields.items()})


S = TypeVar("S", bound=State)


@runtime_checkable
class Search(Protocol[S]):
    """The shape of a policy. `room` is how many probes fit the next forward pass."""

    def start(self, margin: Margins, slope: Margins, last_step: int) -> S:
        """State of fresh rays from their margins at 0 and the first-order estimate of how fast these fall a step."""

    def ask(self, state: S, room: int) -> Probes:
        """The probes wanted next: at least one of each undecided ray, more only while there is room."""

    def tell(self, state: S, measured: Measured) -> S:
        """The state once all the probes of the last `ask` are measured."""


# -- exhaustive --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExhaustiveState(State):
    reached: Steps  # [rows]: every step up to this one was measured and is not flipped

    @property
    def cleared(self) -> Steps:
        """As Isolate's state calls it."""
        return self.reached


@dataclass(frozen=True)
class Exhaustive:
    """The papers' definition: every grid point from the first, until the label changes."""

    def start(self, margin: Margins, slope: Margins, last_step: int) -> ExhaustiveState:
        return ExhaustiveState(np.zeros(len(margin), np.int64), last_step, np.zeros(len(margin), np.int64))

    def ask(self, state: ExhaustiveState, room: int) -> Probes:
        undecided = state.undecided
        block = max(1, room // max(1, len(undecided)))
        row = np.repeat(undecided, block)
        step = state.reached[row] + np.tile(np.arange(1, block + 1), len(undecided))
        inside = step <= state.last_step
        return Probes(row[inside], step[inside])

    def tell(self, state: ExhaustiveState, measured: Measured) -> ExhaustiveState:
        reached, first_flip = state.reached.copy(), state.first_flip.copy()
        np.maximum.at(reached, measured.row, measured.step)
        nowhere = state.last_step + 1
        first = np.full(len(reached), nowhere)
        np.minimum.at(first, measured.row[measured.flipped], measured.step[measured.flipped])
        first_flip[(first_flip == UNDECIDED) & (reached == state.last_step)] = CENSORED
        first_flip[first < nowhere] = first[first < nowhere]
        return ExhaustiveState(first_flip, state.last_step, reached)


# -- isolate -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IsolateState(State):
    """Up to `cleared` no step can flip. To its right lie measured points, nearest last: a stack per ray."""

    cleared: Steps  # [rows]
    margin: Margins  # [rows], at `cleared`
    slope: Margins  # [rows], steepness of the last cleared interval: |change of margin| a step
    point_step: Steps  # [rows, depth]
    point_margin: Margins  # [rows, depth]
    points: Steps  # [rows], how many of them are in use; only the deepest can be flipped


@dataclass(frozen=True)
class Isolate:
    """The first flip from an order of magnitude fewer probes, by Shubert and Piyavskii's bound.

    Between two measured steps a < b with margins p, q > 0, a margin that changes by at most L a step cannot fall
    to 0 if p + q > L (b - a). L is `safety` times the steepest change seen on the interval, on the cleared one to
    its left and on the measured one to its right: local, because margins flatten by orders of magnitude along a
    ray. Intervals that could hide a flip are split, leftmost first, so what is found is the first flip and not just
    a flip. Where nothing is measured yet the search marches: the longest stride that the bound would still clear
    if the margin went on falling as it did, 2 p / (L + slope); on a straight ray this leaves a fixed share of the
    way to the flip each time, so the number of probes grows with the logarithm of the answer.

    Args:
        safety: how many times steeper than seen a margin may be; a larger factor is safer and probes more.
        longest: no interval longer than this share of the grid counts as cleared, whatever its margins.
        depth: how many measured points to the right are remembered for each ray.
    """

    safety: float = 3.0
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
            slope=np.abs(np.asarray(slope, np.float64)),
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
        row = np.zeros(1, np.int64)
        for step, at, flipped in sorted(measured, reverse=True):
            self._push(state, Measured(row, np.array([step]), np.array([at]), np.array([flipped])))
        self._clear(state, row)
        return state

    def ask(self, state: IsolateState, room: int) -> Probes:
        row = state.undecided
        return Probes(row, self._next_step(state, row))

    def tell(self, state: IsolateState, measured: Measured) -> IsolateState:
        state = dataclasses.replace(
            state, **{f.name: getattr(state, f.name).copy() for f in dataclasses.fields(state) if f.name != "last_step"}
        )
        self._push(state, measured)
        self._clear(state, measured.row)
        return state

    # The two below change the arrays of a state that `tell` has just made its own.

    def _push(self, state: IsolateState, measured: Measured) -> None:
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
            fall = np.abs(state.margin[row] - margin) / length
            bound = self.safety * np.maximum.reduce([fall, state.slope[row], self._slope_beyond(state, row)])
            safe = (state.margin[row] + margin > bound * length) & (length <= self._longest_interval(state))
            passed = ~flipped & (safe | (length == 1))
            row, top = row[passed], top[passed]
            state.cleared[row], state.margin[row], state.slope[row] = step[passed], margin[passed], fall[passed]
            state.points[row] = top
            at_end = row[state.cleared[row] == state.last_step]
            state.first_flip[at_end] = CENSORED

    def _longest_interval(self, state: IsolateState) -> int:
        return max(1, int(self.longest * state.last_step))

    def _slope_beyond(self, state: IsolateState, row: Rows) -> Margins:
        """Steepness between the two nearest points to the right; 0 where there are not two."""
        two = state.points[row] > 1
        near = np.maximum(state.points[row] - 1, 1)
        length = state.point_step[row, near - 1] - state.point_step[row, near]
        fall = np.abs(state.point_margin[row, near - 1] - state.point_margin[row, near])
        return np.where(two, fall / np.where(two, length, 1), 0.0)

    def _next_step(self, state: IsolateState, row: Rows) -> Steps:
        start, margin, slope = state.cleared[row], state.margin[row], state.slope[row]
        has_point = state.points[row] > 0
        top = np.maximum(state.points[row] - 1, 0)
        end = np.where(has_point, state.point_step[row, top], state.last_step + 1)  # exclusive
        end_margin = state.point_margin[row, top]
        length = end - start
        flipped = has_point & (end_margin < 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Before a known flip, how the margin falls towards it; in the open, how it fell last.
            fall = np.where(flipped, (margin - end_margin) / length, slope)
            march = 2 * margin / ((self.safety + 1) * fall)
            # Between two positive margins, where the bound is lowest.
            steepest = self.safety * np.maximum.reduce(
                [np.abs(margin - end_margin) / length, slope, self._slope_beyond(state, row)]
            )
            lowest = length / 2 + (margin - end_margin) / (2 * steepest)
        stride = np.where(has_point & ~flipped, lowest, march)
        stride = np.where(np.isfinite(stride), stride, length / 2)
        stride = np.clip(stride, 1, self._longest_interval(state)).round().astype(np.int64)
        return start + np.clip(stride, 1, length - 1)


POLICIES = {"isolate": Isolate, "exhaustive": Exhaustive}


def policy_of(search: str | Search) -> Search:
    """The policy that a name stands for; a policy stands for itself."""
    if isinstance(search, str):
        if search not in POLICIES:
            names = " or ".join(f'"{name}"' for name in POLICIES)
            raise ValueError(f'apem: search must be {names} or a policy (got "{search}")')
        return POLICIES[search]()
    if not isinstance(search, Search):
        raise TypeError(
            f"apem: search must be a name or a policy with start, ask and tell (got {type(search).__name__})"
        )
    return search
