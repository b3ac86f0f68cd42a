"""The first flip of one ray at one level of its map, searched from the answer at a neighbouring level.

The margin m(k, t) at grid step k and level t changes smoothly with both. At one level the first flip is found as
`search.Isolate` finds it, but starting from a neighbour's answer: two probes usually show that nothing changed.

Searches are coroutines: they yield the probes they want and are sent the measured margins. So the engine can run any
number of them side by side, and a test can answer them from a scripted surface of margins.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from apem_fast.search import CENSORED, UNDECIDED, Measured, Resumable, Search, State, lowest_margin

# A curve that other levels reuse is measured more finely than its own answer needs, to remain valid as margins change.
RESERVE = 1.5
SPREAD = 4.0  # at another level, slopes may leave the range seen on the curve by so many times the width of the range
SAFETY = 3.0  # between two levels, the error of a predicted margin may be so many times that at the second level


class LevelProbe(NamedTuple):
    """A point of one ray at one level."""

    ray: int  # RELEVANCE or IRRELEVANCE
    level: int
    step: int
    gradient: bool = False  # asks for the change of the margin with the level, instead of the margin


class LevelMargin(NamedTuple):
    """The margin at one probe, or its change over the levels."""

    margin: float
    flipped: bool
    noise: float  # how far rounding alone may move it from one level to the next
    drift: NDArray[np.float64] | None = None  # (T + 1,) the margin over all levels to first order, per grid step


R = TypeVar("R")
LevelSearch = Generator[list[LevelProbe], Sequence[LevelMargin], R]


def together(searches: Sequence[LevelSearch[R]]) -> LevelSearch[list[R]]:
    """Runs several searches side by side and returns their results in order."""
    results: dict[int, R] = {}
    waiting: dict[int, list[LevelProbe]] = {}

    def advance(i: int, reply: Sequence[LevelMargin] | None) -> None:
        try:
            waiting[i] = next(searches[i]) if reply is None else searches[i].send(reply)
        except StopIteration as end:
            waiting.pop(i, None)
            results[i] = end.value

    for i in range(len(searches)):
        advance(i, None)
    while waiting:
        reply = yield [probe for probes in waiting.values() for probe in probes]
        at = 0
        for i, probes in list(waiting.items()):
            advance(i, reply[at : at + len(probes)])
            at += len(probes)
    return [results[i] for i in range(len(searches))]


@dataclass(frozen=True)
class Curve:
    """What is known of one ray at one level: its first flip, and the points that exclude an earlier one."""

    first_flip: int  # or CENSORED
    step: NDArray[np.int64]  # (P,) unflipped points, ascending, from 0 to the one just before the flip
    margin: NDArray[np.float64]  # (P,) the margins there, measured at this level or a nearby one
    fallen: NDArray[np.float64]  # (P,) how much lower they may be at this level; 0 at the first and the last point
    flip: LevelMargin | None  # the margin at `first_flip`
    noise: float  # how far rounding alone may move the margins on either side of the flip
    safety: float  # as in `lowest_margin`

    @cached_property
    def slack(self) -> NDArray[np.float64]:
        """How far both margins of each interval may fall before it could hide a flip: (P - 1,)."""
        length = np.diff(self.step)
        fall = np.concatenate([[np.nan], -np.diff(self.margin) / length, [np.nan]])
        lowest, _ = lowest_margin(self.safety, self.margin[:-1], self.margin[1:], length, fall[:-2], fall[2:])
        # Both margins of an interval fall by the same amount, since the curve keeps its shape.
        slack = np.where(length == 1, self.margin[1:], lowest) - np.maximum(self.fallen[:-1], self.fallen[1:])
        if len(slack) and length[-1] == 1:
            slack[-1] = np.inf  # the point before the flip is always measured, so it needs no slack
        return slack

    def clear(self, allowance: float) -> int:
        """How many intervals, counted from the first, hide no flip even if every margin is lower by `allowance`."""
        held = self.slack > allowance
        return len(held) if held.all() else int(held.argmin())

    def lowered(self, points: int, allowance: float) -> Curve:
        """The curve's first points (at least the one at 0) with margins lower by `allowance`, for another level."""
        points = max(points, 1)
        fallen = self.fallen[:points] + allowance
        fallen[0] = 0  # the unperturbed image is the same at every level
        return replace(
            self, first_flip=CENSORED, step=self.step[:points], margin=self.margin[:points], fallen=fallen, flip=None
        )

    @property
    def edges(self) -> list[tuple[int, float]]:
        """The (step, margin) just before the flip and at the flip, of those that exist and change with the level."""
        before = [(int(self.step[-1]), float(self.margin[-1]))] if self.step[-1] else []
        return before if self.flip is None else [*before, (self.first_flip, self.flip.margin)]


def search_ray(
    policy: Search[Any], state: State, ray: int, level: int, points: dict[int, LevelMargin]
) -> LevelSearch[int]:
    """The first flip of one ray at one level, from a policy's state with one row. Adds measured points to `points`."""
    while state.first_flip[0] == UNDECIDED:
        row, step = policy.ask(state, 1)
        step = np.minimum(step, state.last_step)  # a neighbouring level reuses the points, so none is beyond the grid
        reply = yield [LevelProbe(ray, level, int(k)) for k in step]
        points.update(zip(step.tolist(), reply))
        margin, flipped = (np.array([getattr(m, name) for m in reply]) for name in ("margin", "flipped"))
        state = policy.tell(state, Measured(row, step, margin, flipped))
    return int(state.first_flip[0])


def _curve(
    policy: Resumable[Any], first_flip: int, held: Curve, points: dict[int, LevelMargin], last_step: int
) -> Curve:
    """The curve of a decided ray, from the points that were taken over and those that were measured."""
    end = first_flip if first_flip != CENSORED else last_step + 1
    known = {k: (m, f) for k, m, f in zip(held.step.tolist(), held.margin.tolist(), held.fallen.tolist())}
    known.update((k, (p.margin, 0.0)) for k, p in points.items())
    step = sorted(k for k in known if k < end)
    margin, fallen = np.array([known[k] for k in step]).T
    flip = None if first_flip == CENSORED else points[first_flip]
    noise = max((points[k].noise for k in (end - 1, end) if k in points), default=0.0)
    return Curve(first_flip, np.array(step), margin, fallen, flip, noise, SPREAD)


def cold(
    policy: Resumable[Any], ray: int, level: int, margin: float, slope: float, last_step: int
) -> LevelSearch[Curve]:
    """The curve of one ray at one level, searched anew."""
    fine = policy.finer(SPREAD * RESERVE)
    points: dict[int, LevelMargin] = {}
    state = fine.start(np.array([margin]), np.array([slope]), last_step)
    first_flip = yield from search_ray(fine, state, ray, level, points)
    start = Curve(CENSORED, np.zeros(1, np.int64), np.array([margin]), np.zeros(1), None, 0.0, SPREAD)
    return _curve(policy, first_flip, start, points, last_step)


def warm(
    policy: Resumable[Any], ray: int, level: int, near: Curve, moved: float, slope: float, last_step: int
) -> LevelSearch[Curve]:
    """The curve of one ray at one level, searched from that of a neighbouring level.

    The two points on either side of the neighbour's flip are measured. Their change (at least `moved`), times the
    safety factor, is how far the neighbour's other margins are assumed to have fallen. Intervals that are clear even
    then stay cleared.
    """
    hints = [k for k, _ in near.edges]
    reply = yield [LevelProbe(ray, level, k) for k in hints]
    points = dict(zip(hints, reply))
    allowance = SAFETY * max(moved, *(abs(points[k].margin - margin) for k, margin in near.edges))
    clear, before = near.clear(allowance), int(near.step[-1])
    end = min((k for k in hints if points[k].flipped), default=last_step + 1)

    fine = policy.finer(SPREAD * RESERVE)
    if clear == len(near.slack) and end > before:  # no flip before the neighbour's flip
        held = near.lowered(len(near.step) - 1, allowance)
        if end - 1 == before:
            return _curve(policy, near.first_flip, held, points, last_step)
        margin = points[before].margin if before else float(near.margin[0])
        known = [(end, points[end].margin, True)] if end in points else []
        if near.first_flip in points and not points[near.first_flip].flipped:
            known.append((near.first_flip, points[near.first_flip].margin, False))
        state = fine.resume(before, margin, _last_fall(held, slope), last_step, known)
    else:
        # The last point before a flip is always measured, never taken over.
        kept = min(clear + 1, int(np.searchsorted(near.step, min(end - 1, before))))
        held = near.lowered(kept, allowance)
        known = [(k, p.margin, p.flipped) for k, p in points.items()]
        cleared, margin = int(held.step[-1]), float(held.margin[-1])
        if cleared and cleared not in points:  # beyond it the bound needs margins of this level
            reply = yield [LevelProbe(ray, level, cleared)]
            points[cleared] = reply[0]
            margin = reply[0].margin
            if reply[0].flipped:  # the margin moved more than the bound allowed: trust nothing
                return (yield from cold(policy, ray, level, float(near.margin[0]), slope, last_step))
        state = fine.resume(cleared, margin, _last_fall(held, slope), last_step, known)
    first_flip = yield from search_ray(fine, state, ray, level, points)
    before = (first_flip if first_flip != CENSORED else last_step + 1) - 1
    if before and before not in points:
        reply = yield [LevelProbe(ray, level, before)]
        points[before] = reply[0]
        if points[before].flipped:  # the margin moved more than the bound allowed: trust nothing
            return (yield from cold(policy, ray, level, float(near.margin[0]), slope, last_step))
    return _curve(policy, first_flip, held, points, last_step)


def _last_fall(curve: Curve, otherwise: float) -> float:
    """How far the margin falls per step over a curve's last interval."""
    if len(curve.step) < 2:
        return otherwise
    return (curve.margin[-2] - curve.margin[-1]) / (curve.step[-1] - curve.step[-2])
