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
