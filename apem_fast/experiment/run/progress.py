"""How far a run is: what its parts tell, and what a display is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class RunProgress:
    """How far this process is with its share of a run, what was on disk when it started left out.

    `work` and `work_total` are estimates, in forward passes of one image.
    """

    images: int = 0
    images_finished: int = 0
    doing: str = ""
    """What is being done where it is not the work on an explainer."""
    explainer: str = ""
    explaining: bool = False
    images_done: int = 0
    images_total: int = 0
    rays_done: int = 0
    rays_total: int = 0
    probes: int = 0
    search_seconds: float = 0.0
    work: float = 0.0
    work_total: float = 0.0
    ahead: float = 0.0
    """How much of the work may be done before the next report."""
    finished: str = ""
    """A sentence, when a step has just been finished."""
    rank: int = 0
    ranks: int = 1


class ProgressKeeper:
    """The present state; every change of it is reported."""

    def __init__(self, report: Callable[[RunProgress], None] | None, rank: int = 0, ranks: int = 1):
        self.state = RunProgress(rank=rank, ranks=ranks)
        self._report = report

    def update(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        if self._report is not None:
            self._report(self.state)
        self.state = replace(self.state, finished="")

    def waiting(self) -> None:
        self.update(doing="waiting for the other processes")


def doing_of(state: RunProgress) -> str:
    """What is being done, in a few words."""
    if state.doing:
        return state.doing
    if state.explaining:
        return f"explaining image {min(state.images_done + 1, state.images_total)} of {state.images_total}"
    return f"{state.rays_done} of {state.rays_total} rays"


class TimeLeft:
    """The time that a run still takes, from the mean speed of what it has done.

    Between two reports, as while a slow explainer is at work, the run is taken to go on at that speed as far as `ahead`
    says, so the time left falls with the clock. None is said before `least_share` of the work is done and
    `least_seconds` have passed: a first report says nothing of the speed.

    Args:
        clock: seconds.
    """

    least_share, least_seconds = 0.02, 2.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun: float | None = None
        self._work = 0.0
        self._advanced = 0.0  # when the work last did

    def seconds(self, state: RunProgress) -> float | None:
        """The seconds left; None where they are not known."""
        now = self._clock()
        if not state.work_total:
            return None
        if self._begun is None:
            self._begun = self._advanced = now
        if state.work != self._work:
            self._work, self._advanced = state.work, now
        passed = self._advanced - self._begun
        if self._work < self.least_share * state.work_total or passed <= 0 or now - self._begun < self.least_seconds:
            return None
        speed = self._work / passed
        presumed = self._work + min(speed * (now - self._advanced), state.ahead)
        return max(0.0, (state.work_total - presumed) / speed)

    def text(self, state: RunProgress) -> str:
        """For people: "1:05 left"; "-:-- left" where it is not known."""
        seconds = self.seconds(state)
        if seconds is None:
            return "-:-- left"
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes}:{seconds:02d} left"
