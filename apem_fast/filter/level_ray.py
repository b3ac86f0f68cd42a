"""Where one ray flips at one level of its map, started from what is known at a neighbouring level.

The margin m(k, t) at grid step k and level t changes smoothly with both. At one level the first flip is found as
`search.Isolate` finds it, but started from a neighbour's answer: two probes usually tell that nothing changed.

Searches are coroutines: they yield the probes they want and are sent what was measured, so that the engine can run
any number of them side by side, and a test can answer them from a scripted surface of margins.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from apem_fast.search import CENSORED, UNDECIDED, Measured, Resumable, Search, State, lowest_margin

# A curve that other levels lean on is measured more finely than its own answer needs, so that it holds when it moves.
RESERVE = 1.5
SPREAD = 4.0  # slopes may leave the range seen on a curve by so many times its width before another level distrusts it
SAFETY = 3.0  # between two levels a margin may be so many times farther from its prediction than at the second one


class LevelProbe(NamedTuple):
    """A point of one ray at one level."""

    ray: int  # RELEVANCE or IRRELEVANCE
    level: int
    step: int
    gradient: bool = False  # asks how the margin there changes with the level, instead of the margin


class LevelMargin(NamedTuple):
    """The margin at one probe, or how it drifts along the levels."""

    margin: float
    flipped: bool
    noise: float  # by how much it may jump from one level to the next by rounding alone
    drift: NDArray[np.float64] | None = None  # (T + 1,) first-order way of the margin over all levels, per grid step


R = TypeVar("R")
LevelSearch = Generator[list[LevelProbe], Sequence[LevelMargin], R]


def together(searches: Sequence[LevelSearch[R]]) -> LevelSearch[list[R]]:
    """Several searches side by side: their results in order."""
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
    """What is known of one ray at one level: where it flips first, and the points that show that not before."""

    first_flip: int  # or CENSORED
    step: NDArray[np.int64]  # (P,) unflipped points, ascending, from 0 to the one just before the flip
    margin: NDArray[np.float64]  # (P,) there, measured at this level or one nearby
    fallen: NDArray[np.float64]  # (P,) by how much it may be lower at this level; 0 at the first and the last point
    flip: LevelMargin | None  # at `first_flip`
    noise: float  # by how much the margins on either side of the flip may jump by rounding alone
    safety: float  # as in `lowest_margin`

    @cached_property
    def slack(self) -> NDArray[np.float64]:
        """(P - 1,) by how much both margins of each interval could fall together before it might hide a flip."""
        length = np.diff(self.step)
        fall = np.concatenate([[np.nan], -np.diff(self.margin) / length, [np.nan]])
        lowest, _ = lowest_margin(self.safety, self.margin[:-1], self.margin[1:], length, fall[:-2], fall[2:])
        # Margins fall together: the curve keeps its shape.
        slack = np.where(length == 1, self.margin[1:], lowest) - np.maximum(self.fallen[:-1], self.fallen[1:])
        if len(slack) and length[-1] == 1:
            slack[-1] = np.inf  # the point before the flip is always measured: it speaks for itself
        return slack

    def clear(self, allowance: float) -> int:
        """How many intervals from the first still hide no flip if every margin may be lower by `allowance`."""
        held = self.slack > allowance
        return len(held) if held.all() else int(held.argmin())

    def lowered(self, points: int, allowance: float) -> Curve:
        """The first points alone (at least the one at 0), their margins lower by `allowance`: as known at another
        level."""
        points = max(points, 1)
        fallen = self.fallen[:points] + allowance
        fallen[0] = 0  # the unperturbed image, whatever the level
        return replace(
            self, first_flip=CENSORED, step=self.step[:points], margin=self.margin[:points], fallen=fallen, flip=None
        )

    @property
    def edges(self) -> list[tuple[int, float]]:
        """(step, margin) just before the flip and at it, of those two that are there and change with the level."""
        before = [(int(self.step[-1]), float(self.margin[-1]))] if self.step[-1] else []
        return before if self.flip is None else [*before, (self.first_flip, self.flip.margin)]


def search_ray(policy: Search, state: State, ray: int, level: int, points: dict[int, LevelMargin]) -> LevelSearch[int]:
    """The first flip of one ray at one level, from a policy's state of one row; `points` gains what was measured."""
    while state.first_flip[0] == UNDECIDED:
        row, step = policy.ask(state, 1)
        step = np.minimum(step, state.last_step)  # a level leans on its neighbour's points: none beyond the grid
        reply = yield [LevelProbe(ray, level, int(k)) for k in step]
        points.update(zip(step.tolist(), reply))
        margin, flipped = (np.array([getattr(m, name) for m in reply]) for name in ("margin", "flipped"))
        state = policy.tell(state, Measured(row, step, margin, flipped))
    return int(state.first_flip[0])


def _curve(policy: Resumable, first_flip: int, held: Curve, points: dict[int, LevelMargin], last_step: int) -> Curve:
    """The curve of a decided ray from the points that it took over and those that it measured."""
    end = first_flip if first_flip != CENSORED else last_step + 1
    known = {k: (m, f) for k, m, f in zip(held.step.tolist(), held.margin.tolist(), held.fallen.tolist())}
    known.update((k, (p.margin, 0.0)) for k, p in points.items())
    step = sorted(k for k in known if k < end)
    margin, fallen = np.array([known[k] for k in step]).T
    flip = None if first_flip == CENSORED else points[first_flip]
    noise = max((points[k].noise for k in (end - 1, end) if k in points), default=0.0)
    return Curve(first_flip, np.array(step), margin, fallen, flip, noise, SPREAD)


def cold(policy: Resumable, ray: int, level: int, margin: float, slope: float, last_step: int) -> LevelSearch[Curve]:
    """The curve of one ray at one level, from nothing."""
    fine = policy.finer(SPREAD * RESERVE)
    points: dict[int, LevelMargin] = {}
    state = fine.start(np.array([margin]), np.array([slope]), last_step)
    first_flip = yield from search_ray(fine, state, ray, level, points)
    start = Curve(CENSORED, np.zeros(1, np.int64), np.array([margin]), np.zeros(1), None, 0.0, SPREAD)
    return _curve(policy, first_flip, start, points, last_step)


def warm(
    policy: Resumable, ray: int, level: int, near: Curve, moved: float, slope: float, last_step: int
) -> LevelSearch[Curve]:
    """The curve of one ray at one level, from that of a neighbouring level.

    The two points on either side of the neighbour's flip are measured here; how much they moved, times the safety
    factor, is how much the neighbour's other margins are taken to have fallen; at least they moved by `moved`. What
    they still clear stays cleared.
    """
    hints = [k for k, _ in near.edges]
    reply = yield [LevelProbe(ray, level, k) for k in hints]
    points = dict(zip(hints, reply))
    allowance = SAFETY * max(moved, *(abs(points[k].margin - margin) for k, margin in near.edges))
    clear, before = near.clear(allowance), int(near.step[-1])
    end = min((k for k in hints if points[k].flipped), default=last_step + 1)

    fine = policy.finer(SPREAD * RESERVE)
    if clear == len(near.slack) and end > before:  # no flip before the neighbour's
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
        if cleared and cleared not in points:  # from here on the bound needs this level's own margins
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
    """By how much a step the margin falls over a curve's last interval."""
    if len(curve.step) < 2:
        return otherwise
    return (curve.margin[-2] - curve.margin[-1]) / (curve.step[-1] - curve.step[-2])
