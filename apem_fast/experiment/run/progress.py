"""The progress of a run: what its parts report, and what a display shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class RunProgress:
    """The progress of this process's share of a run, without what was on disk when it started.

    `work` and `work_total` are estimates, in forward passes of one image.
    """

    images: int = 0
    images_finished: int = 0
    doing: str = ""
    """The current work, if it is not on an explainer."""
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
    """How much work may be done before the next report."""
    finished: str = ""
    """A sentence if a step was just finished; else empty."""
    rank: int = 0
    ranks: int = 1


class ProgressKeeper:
    """Keeps the present state and reports every change of it."""

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
    """The current work in a few words."""
    if state.doing:
        return state.doing
    if state.explaining:
        return f"explaining image {min(state.images_done + 1, state.images_total)} of {state.images_total}"
    return f"{state.rays_done} of {state.rays_total} rays"


class TimeLeft:
    """The time that a run still takes, estimated from its mean speed so far.

    Between two reports, for example during a slow explainer, the run is assumed to go on at that speed for at most
    `ahead`, so that the time left falls with the clock. There is no estimate before `least_share` of the work is done
    and `least_seconds` have passed, since a first report does not show the speed.

    Args:
        clock: the time in seconds.
    """

    least_share, least_seconds = 0.02, 2.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun: float | None = None
        self._work = 0.0
        self._advanced = 0.0  # when the work last advanced

    def seconds(self, state: RunProgress) -> float | None:
        """The seconds left; None if unknown."""
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
        """The time left as text: "1:05 left", or "-:-- left" if unknown."""
        seconds = self.seconds(state)
        if seconds is None:
            return "-:-- left"
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes}:{seconds:02d} left"
