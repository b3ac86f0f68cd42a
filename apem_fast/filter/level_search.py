"""Which level to probe next: the filter's search over the levels of one map. It uses margins and no models.

A gradient predicts the margin at every level. At the next level that is probed, the error of the prediction is known.
If no margin between can change its sign even with SAFETY times that error, the levels between have the same flip and
are skipped. Most levels are settled like this; at the others `level_ray` finds the flip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apem_fast.filter.level_ray import SAFETY, Curve, LevelProbe, LevelSearch, cold, search_ray, together, warm
from apem_fast.filter.levels import IRRELEVANCE, RELEVANCE, Levels
from apem_fast.filter.stopping import Ending, LevelFlips, Stop, StoppingRule, Watch
from apem_fast.search import Resumable, Search

GROWTH = 4  # a stride over the levels is at most so many times the one before
FIRST_STRIDE = 64  # the first stride is the number of levels divided by this
OUT_OF_DATE = 0.05  # a gradient is computed again if its prediction missed by more than this share of the change
INEXACT = 0.25  # the least relative error assumed for a predicted change of margin

Room = Callable[[], int]
"""How many levels of a ray may be asked for at once."""


@dataclass(frozen=True)
class Filtered:
    """Where the filter of one map ended, and the flips over the levels.

    The flips in a row of `changes` hold until the level of the next row. The first row is level 0.
    """

    ending: Ending
    changes: list[LevelFlips]
    margin: float = math.nan  # of the probe that made the score drop; of several, the one nearest to 0


@dataclass(frozen=True)
class Start:
    """Both rays at epsilon 0: the margin, and a first-order estimate of its fall per grid step."""

    margin: float
    slope: tuple[float, float]


def filter_levels(
    policy: Search[Any],
    levels: Levels,
    start: Start,
    rule: StoppingRule,
    room: Room = lambda: 1,
    settled: Callable[[int], None] = lambda level: None,
) -> LevelSearch[Filtered]:
    """P2 Algorithm 2 over the levels of one map. A `Resumable` policy can skip levels; any other visits every one.

    Args:
        policy: finds the first flip at one level.
        start: both rays at epsilon 0.
        rule: what counts as a drop, and how far rays are searched.
        room: how many levels of a ray may be asked for at once.
        settled: called with the level up to which everything is known, whenever it rises.
    """
    rays: list[_Visitor] = [
        _Follower(policy, levels, ray, start.margin, start.slope[ray], rule.last_step, room)
        if isinstance(policy, Resumable)
        else _Visitor(policy, levels, ray, start.margin, start.slope[ray], rule.last_step, room)
        for ray in (RELEVANCE, IRRELEVANCE)
    ]
    changes: list[LevelFlips] = []
    watch = Watch(rule)
    yield from together([ray.begin() for ray in rays])
    while True:
        known = min(ray.at for ray in rays)
        for level in sorted({change for ray in rays for change in ray.flips if change <= known}):
            if changes and level <= changes[-1].level:
                continue
            changes.append(LevelFlips(level, *(ray.flip_at(level) for ray in rays)))
            ending = watch.see(changes[-1])
            if ending is not None:
                return (yield from _ended(ending, changes, rule.patience))
        settled(known)
        ending = watch.ended(known, at_last=known == levels.last)
        if ending is None and known == levels.last:
            ending = Ending(known, Stop.WOULD_BE_EMPTY)
        if ending is not None:
            return (yield from _ended(ending, changes, rule.patience))
        # The ray that is behind; the other one too, if there is room to probe ahead.
        behind = [ray for ray in rays if ray.at == known or (room() > 1 and ray.at < levels.last)]
        yield from together([ray.extend() for ray in behind])


def _ended(ending: Ending, changes: list[LevelFlips], patience: int) -> LevelSearch[Filtered]:
    """The result, for which the deciding margins are probed once more."""
    margin, fall = math.nan, ending.fall
    points = [] if fall is None else [LevelProbe(ray, fall.at.level, step) for ray, step in fall.deciding()]
    if points:
        reply = yield points
        margin = min((answer.margin for answer in reply), key=abs)
    if ending.stop is Stop.DROPPED and fall is not None:  # flips beyond the drop may or may not be known
        changes = [change for change in changes if change.level <= fall.at.level + patience]
    return Filtered(ending, changes, margin)


@dataclass
class _Visitor:
    """The first flips of one ray over the levels; each level is searched anew."""

    policy: Search[Any]
    levels: Levels
    ray: int
    margin: float
    slope: float
    last_step: int
    room: Room
    at: int = -1  # the flips are known up to this level
    flips: dict[int, int] = field(default_factory=dict)  # each by the level from which it holds

    def flip_at(self, level: int) -> int:
        return self.flips[max(change for change in self.flips if change <= level)]

    def begin(self) -> LevelSearch[None]:
        return self.extend()

    def extend(self) -> LevelSearch[None]:
        block = range(self.at + 1, min(self.at + 1 + self.room(), self.levels.last + 1))
        found = yield from together(
            [
                search_ray(
                    self.policy,
                    self.policy.start(np.array([self.margin]), np.array([self.slope]), self.last_step),
                    self.ray,
                    level,
                    {},
                )
                for level in block
            ]
        )
        for level, flip in zip(block, found):
            self._settle(level, flip)

    def _settle(self, level: int, flip: int) -> None:
        if not self.flips or self.flip_at(level) != flip:
            self.flips[level] = flip
        self.at = level


@dataclass
class _Follower(_Visitor):
    """The same with a policy that can resume: a level is searched from its neighbour, most without a probe."""

    policy: Resumable[Any]
    curves: dict[int, Curve] = field(default_factory=dict)  # at the last known level and at those probed ahead of it
    stride: int = 0
    drift: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # (T + 1,) as in LevelMargin
    drifted: bool = True  # whether the gradient behind `drift` is out of date
    astray: float = 0.0  # the last error of a predicted margin, per length of the path

    def begin(self) -> LevelSearch[None]:
        self.curves[0] = yield from cold(self.policy, self.ray, 0, self.margin, self.slope, self.last_step)
        self.stride = max(1, self.levels.last // FIRST_STRIDE)
        self._settle(0, self.curves[0].first_flip)

    def extend(self) -> LevelSearch[None]:
        if self.drifted:
            reply = yield [LevelProbe(self.ray, self.at, self.curves[self.at].edges[-1][0], gradient=True)]
            assert reply[0].drift is not None  # it was asked for
            self.drift, self.drifted = reply[0].drift, False
            if self._clear():  # levels probed ahead may be settled now
                return
        wanted = self._next_levels()
        near = {level: min(self.curves, key=lambda known: abs(known - level)) for level in wanted}
        found = yield from together(
            [
                warm(
                    self.policy,
                    self.ray,
                    t,
                    self.curves[near[t]],
                    self._predicted_range(near[t], t),
                    self.slope,
                    self.last_step,
                )
                for t in wanted
            ]
        )
        self.curves.update(zip(wanted, found))
        while not self.drifted and self._clear():
            pass

    def _predicted_range(self, level: int, other: int) -> float:
        """The predicted range of the change of the margins at the last known flip, between two levels."""
        between = self.drift[min(level, other) : max(level, other) + 1]
        return float(np.ptp(between)) * self.curves[self.at].edges[-1][0]

    @property
    def _ahead(self) -> int | None:
        return min((level for level in self.curves if level > self.at), default=None)

    def _clear(self) -> bool:
        """Moves to the next probed level if no level before it can have another flip."""
        ahead = self._ahead
        if ahead is None:
            return False
        adjacent = ahead == self.at + 1
        alike = self.curves[self.at].first_flip == self.curves[ahead].first_flip
        if not adjacent and not (alike and self._unchanged(ahead)):
            return False
        if alike:
            miss = max(map(abs, self._misses(ahead)))
            self.astray = miss / self._length(ahead)
            self.drifted = not adjacent and miss > OUT_OF_DATE * self._predicted_range(self.at, ahead)
        else:
            self.drifted = True
        self.stride = GROWTH * (ahead - self.at)
        del self.curves[self.at]
        self._settle(ahead, self.curves[ahead].first_flip)
        return True

    def _length(self, ahead: int) -> float:
        return float(self.levels.path[ahead, self.ray] - self.levels.path[self.at, self.ray])

    def _misses(self, ahead: int) -> list[float]:
        """The errors of the predicted margins on either side of a flip that is the same at both levels."""
        way = self.drift[ahead] - self.drift[self.at]
        edges = zip(self.curves[self.at].edges, self.curves[ahead].edges)
        return [there - (here + k * way) for (k, here), (_, there) in edges]

    def _unchanged(self, ahead: int) -> bool:
        """Whether all levels up to one with the same flip must have that flip too."""
        here, there = self.curves[self.at], self.curves[ahead]
        way = self.drift[self.at : ahead + 1] - self.drift[self.at]
        spread = float(np.ptp(way))
        off = max(*map(abs, self._misses(ahead)), self.astray * self._length(ahead))
        for k, margin in here.edges:
            sign = 1 if margin > 0 else -1
            least = float((sign * (margin + k * way)).min())
            if least - SAFETY * off - INEXACT * k * spread <= max(here.noise, there.noise):
                return False
        # Earlier margins are assumed to change in the same way. If they change along a straight line, none between the
        # two levels is lower than at both, and no interval has less slack.
        dip = min(0.0, float(way[-1])) - float(way.min())
        fall = SAFETY * (off + here.edges[-1][0] * dip) + INEXACT * here.edges[-1][0] * spread
        return here.clear(fall) == len(here.slack) and there.clear(fall) == len(there.slack)

    def _next_levels(self) -> list[int]:
        """The next levels to probe: as far as the last prediction error allows, at most half-way to a probed level.

        If there is room, also levels two and four times as far.
        """
        ahead, curve = self._ahead, self.curves[self.at]
        end = self.levels.last + 1 if ahead is None else ahead
        furthest = min(self.stride, end - 1 - self.at if ahead is None else (ahead - self.at) // 2)
        way = self.drift[self.at : self.at + furthest + 1] - self.drift[self.at]
        spread = np.maximum.accumulate(way) - np.minimum.accumulate(way)
        off = self.astray * (
            self.levels.path[self.at : self.at + furthest + 1, self.ray] - self.levels.path[self.at, self.ray]
        )
        dip = np.minimum(way, 0) - np.minimum.accumulate(way)
        fall = SAFETY * (off + curve.edges[-1][0] * dip) + INEXACT * curve.edges[-1][0] * spread
        settled = fall < curve.slack.min(initial=np.inf)
        for k, margin in curve.edges:
            sign = 1 if margin > 0 else -1
            least = np.minimum.accumulate(sign * (margin + k * way))
            settled &= least - SAFETY * off - INEXACT * k * spread > curve.noise
        stride = len(settled) - 1 if settled.all() else int(settled.argmin()) - 1
        wanted = [self.at + max(stride, 1)]
        while len(wanted) < self.room() and wanted[-1] < end:
            wanted.append(wanted[-1] + max(stride, 1) * 2 ** len(wanted))
        return [level for level in wanted if level < end]
