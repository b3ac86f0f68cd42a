"""When the filter stops: what counts as a drop of the score, and which flip caused it.

P2 Algorithm 2 compares each level with the one before and stops at the first fall. So one fall by a single grid step,
among tens of thousands of levels, decides the result. This library adds `against="start"`, which compares with the
original map, and `patience`, with which a fall must last.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from apem_fast.filter.levels import IRRELEVANCE, RELEVANCE
from apem_fast.search import CENSORED


class Stop(enum.Enum):
    """Why the filter stopped."""

    DROPPED = "The score drops at the next level."
    CENSORED = "At the next level a ray begins or ceases to be censored, so the scores cannot be compared."
    WOULD_BE_EMPTY = "The next level would leave nothing of the map."


class LevelFlips(NamedTuple):
    """First flips, or CENSORED, of both rays at one level."""

    level: int
    minus: int
    plus: int

    def censored(self) -> tuple[bool, bool]:
        return self.minus == CENSORED, self.plus == CENSORED


@dataclass(frozen=True)
class StoppingRule:
    """What counts as a drop. Scores are compared in whole grid steps, so without rounding.

    Args:
        last_step: a ray without a flip up to here is censored.
        most_lost: a score that falls by no more steps than this has not dropped.
        patience: for how many further levels it may stay low before that counts as a drop.
        against: "previous", the score of the level before; or "start", that of the original map.
    """

    last_step: int
    most_lost: int = 0
    patience: int = 0
    against: str = "previous"

    def score(self, at: LevelFlips) -> int:
        minus, plus = (self.last_step if flip == CENSORED else flip for flip in (at.minus, at.plus))
        return plus - minus


@dataclass(frozen=True)
class Fall:
    """The level at which a score fell below what it is compared with."""

    before: LevelFlips
    at: LevelFlips
    reference: int  # the score that it was compared with
    steps: int  # how many grid steps it fell

    def deciding(self) -> list[tuple[int, int]]:
        """The points (ray, grid step) that made the score smaller than at the level before.

        There the irrelevance ray now flips earlier, or the relevance ray no longer flips.
        """
        points = []
        if self.at.plus != CENSORED and self.at.plus < self.before.plus:
            points.append((IRRELEVANCE, self.at.plus))
        if self.at.minus != CENSORED and self.at.minus > self.before.minus:
            points.append((RELEVANCE, self.at.minus - 1))
        return points


@dataclass(frozen=True)
class Ending:
    """The last level that is kept, and why the filter stopped there."""

    level: int
    stop: Stop
    fall: Fall | None = None


class Watch:
    """Follows the flips of one map from level to level and says when the filter stops."""

    def __init__(self, rule: StoppingRule):
        self._rule = rule
        self._start = self._before = LevelFlips(0, CENSORED, CENSORED)
        self._fall: Fall | None = None

    def see(self, now: LevelFlips) -> Ending | None:
        """Takes the flips that hold from this level on. Level 0 comes first; between calls nothing changes."""
        if now.level == 0:
            self._start = self._before = now
            return None
        if (ended := self.ended(now.level - 1)) is not None:
            return ended
        if now.censored() != self._before.censored():
            return Ending((self._fall.at.level if self._fall else now.level) - 1, Stop.CENSORED)
        score, rule = self._rule.score(now), self._rule
        if self._fall is not None:
            reference = self._fall.reference
        else:
            reference = rule.score(self._start if rule.against == "start" else self._before)
        if reference - score <= rule.most_lost:
            self._fall = None
        elif self._fall is None:
            self._fall = Fall(self._before, now, reference, reference - score)
        self._before = now
        return self.ended(now.level)

    def ended(self, known: int, at_last: bool = False) -> Ending | None:
        """The ending, if the flips do not change up to the level `known`; None if the filter goes on.

        It ends once the score has been low for long enough, and in any case at the last level.
        """
        if self._fall is None or not (at_last or known >= self._fall.at.level + self._rule.patience):
            return None
        return Ending(self._fall.at.level - 1, Stop.DROPPED, self._fall)
