"""What a policy may offer beyond `Search`. Nothing of it is needed; without it some searches take a slow way.

- A state that is `Clearing` lets the shuffles of a map share one search: none looks beyond the nearest flip.
- A policy that is `Resumable` lets the filter follow a flip from level to level, most of them without a probe.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, Self, TypeVar, runtime_checkable

from apem_fast.search.policy import Search, State, Steps

S = TypeVar("S", bound=State)


@runtime_checkable
class Clearing(Protocol):
    """A state that says how far each of its rays is cleared, as those of Isolate and Exhaustive do."""

    @property
    def first_flip(self) -> Steps:
        """[rows]: as of every state."""

    @property
    def cleared(self) -> Steps:
        """[rows]: no step up to this one can flip."""


@runtime_checkable
class Resumable(Search[S], Protocol[S]):
    """A policy that can begin in the middle of a ray, as Isolate can."""

    def finer(self, spread: float) -> Self:
        """The same policy for curves that others lean on: slopes may leave the range of those nearby by `spread` times
        its width."""

    def resume(
        self, cleared: int, margin: float, slope: float, last_step: int, measured: Sequence[tuple[int, float, bool]]
    ) -> S:
        """State of one ray of which something is known: no flip up to `cleared`, where it has this margin and falls by
        `slope` a step; and (step, margin, flipped) beyond."""


def warn_of_slow_way(caller: str, policy: object, lacks: str, consequence: str) -> None:
    """Says that a policy takes a slow way for want of an ability; once a process, as Python counts warnings."""
    warnings.warn(
        f"{caller}: the search policy {type(policy).__name__} {lacks}, so {consequence}", UserWarning, stacklevel=2
    )
