"""Which level to probe next: the filter's search along the levels of one map, which knows nothing of models.

The margin m(k, t) at grid step k and level t changes smoothly with both. At one level the first flip is found as
`search.Isolate` finds it, but started from a neighbour's answer: two probes usually tell that nothing changed.
Between two levels with the same answers, the margins on either side of each flip bound the margins in between by the
same argument as in epsilon, so most levels need no probe at all. A level is settled once its score is known in one
of these ways; the first drop in level order ends the search, and what was probed beyond it is discarded.

Searches are coroutines: they yield the probes they want and are sent what was measured, so that the engine can run
any number of them side by side, and a test can answer them from a scripted surface of margins.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from apem_fast.levels import IRRELEVANCE, RELEVANCE, Levels
from apem_fast.search import CENSORED, UNDECIDED, Isolate, Measured, Search, State

# A curve that other levels lean on is measured a little more finely than its own answer needs, so that it can move.
RESERVE = 1.5
GROWTH = 4  # a stride along the levels is at most this many times the one before
FIRST_STRIDE = 64  # the first stride is the levels divided by this


class LevelProbe(NamedTuple):
    """A point of one ray at one level."""

    ray: int  # RELEVANCE or IRRELEVANCE
    level: int
    step: int


class LevelMargin(NamedTuple):
    """What came of it."""

    margin: float
    flipped: bool
    noise: float  # how large a margin may be noise


class Reply(NamedTuple):
    """The answers to what a search yielded, in order, and how many levels it may ask for at once."""

    margins: Sequence[LevelMargin]
    room: int


R = TypeVar("R")
LevelSearch = Generator[list[LevelProbe], Reply, R]


def together(searches: Sequence[LevelSearch[R]]) -> LevelSearch[list[R]]:
    """Several searches side by side: their results in order."""
    results: dict[int, R] = {}
    waiting: dict[int, list[LevelProbe]] = {}

    def advance(i: int, reply: Reply | None) -> None:
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
            advance(i, Reply(reply.margins[at : at + len(probes)], reply.room))
            at += len(probes)
    return [results[i] for i in range(len(searches))]


# -- one ray at one level ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """What is known of one ray at one level: where it flips first, and the points that show that not before."""

    first_flip: int  # or CENSORED
    step: NDArray[np.int64]  # (P,) unflipped points, ascending, from 0 to the one just before the flip
    margin: NDArray[np.float64]  # (P,) at least this; measured at the first and the last point
    flip: LevelMargin | None  # at `first_flip`
    noise: float  # how large the margins on either side of the flip may be and yet be noise
    safety: float  # as in Isolate

    @cached_property
    def slack(self) -> NDArray[np.float64]:
        """(P - 1,) by how much both margins of each interval could fall together before it might hide a flip."""
        length = np.diff(self.step)
        fall = np.abs(np.diff(self.margin)) / length
        around = np.concatenate([[0.0], fall, [0.0]])
        bound = self.safety * np.maximum.reduce([fall, around[:-2], around[2:]])
        either = (self.margin[:-1] + self.margin[1:] - bound * length) / 2
        return np.where(length == 1, self.margin[1:], either)

    def clear(self, allowance: float) -> int:
        """How many intervals from the first still hide no flip if every margin may be lower by `allowance`."""
        held = self.slack > allowance
        return len(held) if held.all() else int(held.argmin())

    def lowered(self, points: int, allowance: float) -> Curve:
        """The first points alone (at least the one at 0), their margins lower by `allowance`, as if at another level."""
        margin = self.margin[: max(points, 1)] - allowance
        margin[0] = self.margin[0]  # the unperturbed image, whatever the level
        return replace(self, first_flip=CENSORED, step=self.step[: max(points, 1)], margin=margin, flip=None)

    @property
    def edges(self) -> list[tuple[int, float]]:
        """(step, margin) just before the flip and at it, of those two that are there and change with the level."""
        before = [(int(self.step[-1]), float(self.margin[-1]))] if self.step[-1] else []
        return before if self.flip is None else [*before, (self.first_flip, self.flip.margin)]


def search_ray(policy: Search, state: State, ray: int, level: int, points: dict[int, LevelMargin]) -> LevelSearch[int]:
    """The first flip of one ray at one level, from a policy's state of one row; `points` gains what was measured."""
    while state.first_flip[0] == UNDECIDED:
        row, step = policy.ask(state, 1)
        reply = yield [LevelProbe(ray, level, int(k)) for k in step]
        points.update(zip(step.tolist(), reply.margins))
        margin, flipped = (np.array([getattr(m, name) for m in reply.margins]) for name in ("margin", "flipped"))
        state = policy.tell(state, Measured(row, step, margin, flipped))
    return int(state.first_flip[0])


def _curve(policy: Isolate, first_flip: int, held: Curve, points: dict[int, LevelMargin], last_step: int) -> Curve:
    """The curve of a decided ray from the points that it took over and those that it measured."""
    end = first_flip if first_flip != CENSORED else last_step + 1
    lower = dict(zip(held.step.tolist(), held.margin.tolist()))
    lower.update((k, p.margin) for k, p in points.items())
    step = sorted(k for k in lower if k < end)
    flip = None if first_flip == CENSORED else points[first_flip]
    noise = max((points[k].noise for k in (end - 1, end) if k in points), default=0.0)
    return Curve(first_flip, np.array(step), np.array([lower[k] for k in step]), flip, noise, policy.safety)


def cold(policy: Isolate, ray: int, level: int, margin: float, slope: float, last_step: int) -> LevelSearch[Curve]:
    """The curve of one ray at one level, from nothing."""
    fine = replace(policy, safety=policy.safety * RESERVE)
    points: dict[int, LevelMargin] = {}
    state = fine.start(np.array([margin]), np.array([slope]), last_step)
    first_flip = yield from search_ray(fine, state, ray, level, points)
    start = Curve(CENSORED, np.zeros(1, np.int64), np.array([margin]), None, 0.0, policy.safety)
    return _curve(policy, first_flip, start, points, last_step)


def warm(policy: Isolate, ray: int, level: int, near: Curve, slope: float, last_step: int) -> LevelSearch[Curve]:
    """The curve of one ray at one level, from that of a neighbouring level.

    The two points on either side of the neighbour's flip are measured here; how much they moved, times the safety
    factor, is how much the neighbour's other margins are taken to have fallen. What they still clear stays cleared.
    """
    hints = [k for k, _ in near.edges]
    reply = yield [LevelProbe(ray, level, k) for k in hints]
    points = dict(zip(hints, reply.margins))
    allowance = policy.safety * max(abs(points[k].margin - margin) for k, margin in near.edges)
    clear, before = near.clear(allowance), int(near.step[-1])
    end = min((k for k in hints if points[k].flipped), default=last_step + 1)

    fine = replace(policy, safety=policy.safety * RESERVE)
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
        state = fine.resume(cleared, margin, _last_fall(held, slope), last_step, known)
    first_flip = yield from search_ray(fine, state, ray, level, points)
    before = (first_flip if first_flip != CENSORED else last_step + 1) - 1
    if before and before not in points:
        reply = yield [LevelProbe(ray, level, before)]
        points[before] = reply.margins[0]
        if points[before].flipped:  # the margin moved more than the bound allowed: trust nothing
            return (yield from cold(policy, ray, level, float(near.margin[0]), slope, last_step))
    return _curve(policy, first_flip, held, points, last_step)


def _last_fall(curve: Curve, otherwise: float) -> float:
    """Steepness of a curve's last interval, a step."""
    if len(curve.step) < 2:
        return otherwise
    return abs(curve.margin[-1] - curve.margin[-2]) / (curve.step[-1] - curve.step[-2])


# -- the levels of one map ---------------------------------------------------------------------------------------


class Stop(enum.Enum):
    """Why the filter went no further."""

    DROPPED = "The score drops at the next level."
    CENSORED = "At the next level a ray begins or ceases to be censored, so the scores cannot be compared."
    WOULD_BE_EMPTY = "The next level would leave nothing of the map."


class Settled(NamedTuple):
    """First flips, or CENSORED, of both rays at one level."""

    level: int
    minus: int
    plus: int


@dataclass(frozen=True)
class Filtered:
    """The last level before the score drops, why, and every level at which something was seen to change or not.

    Between two rows of `seen` nothing changes: the levels in between have the flips of the upper row.
    """

    level: int
    stop: Stop
    seen: list[Settled]


@dataclass(frozen=True)
class Start:
    """Both rays at epsilon 0: the margin, and first-order estimates of how fast it falls a grid step."""

    margin: float
    slope: tuple[float, float]


def stop_between(before: Settled, after: Settled, last_step: int, most_lost: int) -> Stop | None:
    """Whether the filter stops before `after`. Scores are compared in whole grid steps, which do not round.

    Args:
        most_lost: a score that falls by more steps than this has dropped.
    """
    if (before.minus == CENSORED, before.plus == CENSORED) != (after.minus == CENSORED, after.plus == CENSORED):
        return Stop.CENSORED

    def score(at: Settled) -> int:
        return (last_step if at.plus == CENSORED else at.plus) - (last_step if at.minus == CENSORED else at.minus)

    return Stop.DROPPED if score(before) - score(after) > most_lost else None


def filter_levels(
    policy: Search,
    levels: Levels,
    start: Start,
    last_step: int,
    most_lost: int,
    room: int = 1,
    settled: Callable[[int], None] = lambda level: None,
) -> LevelSearch[Filtered]:
    """P2 Algorithm 2 over the levels of one map: `Isolate` follows the levels, any other policy visits every one.

    Args:
        policy: finds the first flip at one level.
        start: both rays at epsilon 0.
        last_step: a ray without a flip up to here is censored.
        most_lost: the score has dropped if it fell by more grid steps than this from one level to the next.
        room: how many levels may be asked for at once, until the first reply says.
        settled: called with each level up to which everything is known.
    """
    if isinstance(policy, Isolate):
        return (yield from _follow_levels(policy, levels, start, last_step, most_lost, room, settled))
    return (yield from _every_level(policy, levels, start, last_step, most_lost, room, settled))


def _every_level(
    policy: Search,
    levels: Levels,
    start: Start,
    last_step: int,
    most_lost: int,
    room: int,
    settled: Callable[[int], None],
) -> LevelSearch[Filtered]:
    seen: list[Settled] = []
    for first in range(0, levels.last + 1, room):
        block = range(first, min(first + room, levels.last + 1))
        flips = yield from together([
            search_ray(policy, policy.start(np.array([start.margin]), np.array([start.slope[ray]]), last_step), ray, t, {})
            for t in block for ray in (RELEVANCE, IRRELEVANCE)
        ])  # fmt: skip
        for t, minus, plus in zip(block, flips[0::2], flips[1::2]):
            seen.append(Settled(t, minus, plus))
            stop = stop_between(seen[-2], seen[-1], last_step, most_lost) if t else None
            if stop is not None:
                return Filtered(t - 1, stop, seen)
            settled(t)
    return Filtered(levels.last, Stop.WOULD_BE_EMPTY, seen)


def _follow_levels(
    policy: Isolate,
    levels: Levels,
    start: Start,
    last_step: int,
    most_lost: int,
    room: int,
    settled: Callable[[int], None],
) -> LevelSearch[Filtered]:
    rays = (RELEVANCE, IRRELEVANCE)
    curves: dict[int, list[Curve]] = {}  # by level: the last settled one, and those probed ahead of it
    curves[0] = yield from together([cold(policy, ray, 0, start.margin, start.slope[ray], last_step) for ray in rays])
    seen = [_settled(0, curves[0])]
    at, stride = 0, max(1, levels.last // FIRST_STRIDE)
    slope = np.zeros(2)  # of each ray's margins along its path, on the last interval that was cleared
    while at < levels.last:
        ahead = min((t for t in curves if t > at), default=None)
        if ahead is not None:
            length = levels.path[ahead] - levels.path[at]
            steepness = np.array([_steepness(a, b, d) for a, b, d in zip(curves[at], curves[ahead], length)])
            steepest = np.fmax(steepness, slope)  # NaN, where the flips differ, says nothing
            if ahead == at + 1 or all(
                _unchanged(a, b, policy.safety * s * d)
                for a, b, s, d in zip(curves[at], curves[ahead], steepest, length)
            ):
                seen.append(_settled(ahead, curves[ahead]))
                stop = stop_between(seen[-2], seen[-1], last_step, most_lost)
                if stop is not None:
                    return Filtered(at, stop, seen)
                slope = np.where(np.isnan(steepness), slope, steepness)
                stride = GROWTH * max(ahead - at, 1)
                del curves[at]
                at = ahead
                settled(at)
                continue
            stride = min(stride, (ahead - at) // 2)
        else:
            steepest = slope
        end = levels.last + 1 if ahead is None else ahead
        wanted = _next_levels(policy, levels, curves[at], at, end, min(stride, end - at), steepest, room)
        nearest = {t: curves[min(curves, key=lambda c: abs(c - t))] for t in wanted}
        found = yield from together([
            warm(policy, ray, t, nearest[t][ray], start.slope[ray], last_step) for t in wanted for ray in rays
        ])  # fmt: skip
        curves.update((t, found[2 * i : 2 * i + 2]) for i, t in enumerate(wanted))
    return Filtered(levels.last, Stop.WOULD_BE_EMPTY, seen)


def _settled(level: int, curves: Sequence[Curve]) -> Settled:
    return Settled(level, curves[RELEVANCE].first_flip, curves[IRRELEVANCE].first_flip)


def _steepness(a: Curve, b: Curve, length: float) -> float:
    """How fast the margins on either side of the flip change along the path; NaN if the flip is not the same."""
    if a.first_flip != b.first_flip:
        return np.nan
    return max(abs(p - q) for (_, p), (_, q) in zip(a.edges, b.edges)) / length


def _unchanged(a: Curve, b: Curve, most: float) -> bool:
    """Whether no level between can flip elsewhere if margins change by at most `most` from one to the other.

    Between margins p and q of the same sign, p + q > most keeps the sign, and no margin in between is lower than the
    nearer one by more than most / 2.
    """
    if a.first_flip != b.first_flip:
        return False
    noise = a.noise + b.noise
    if any(abs(p) + abs(q) - noise <= most for (_, p), (_, q) in zip(a.edges, b.edges)):
        return False
    return a.clear(most / 2) == len(a.slack) and b.clear(most / 2) == len(b.slack)


def _next_levels(
    policy: Isolate, levels: Levels, curves: list[Curve], at: int, end: int, stride: int, slope: NDArray, room: int
) -> list[int]:
    """The next level, as far as the bound would clear if the margins went on changing as they did; then, while
    there is room, speculatively, twice as far and so on."""
    for ray, curve in enumerate(curves):
        if slope[ray] > 0:
            edge = max(0.0, min(abs(margin) for _, margin in curve.edges) - curve.noise)
            slack = curve.slack.min(initial=np.inf)
            march = min(2 * edge / ((policy.safety + 1) * slope[ray]), 2 * slack / (policy.safety * slope[ray]))
            reach = np.searchsorted(levels.path[:, ray], levels.path[at, ray] + march, side="right") - 1
            stride = min(stride, int(reach) - at)
    stride = max(stride, 1)
    wanted = [at + stride]
    while len(wanted) < room:
        wanted.append(wanted[-1] + stride * 2 ** len(wanted))
    return [t for t in wanted if t < end] or [min(wanted[0], end - 1)]
