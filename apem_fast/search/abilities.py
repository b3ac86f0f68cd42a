"""Optional abilities of a policy beyond `Search`. Without them some searches are slower.

- If its states are `Clearing`, the shuffles of a map share one search, which ends at the nearest flip.
- If the policy is `Resumable`, the filter follows a flip from level to level, and most levels need no probe.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol, Self, TypeVar, runtime_checkable

from apem_fast.search.policy import Search, State, Steps

S = TypeVar("S", bound=State)


@runtime_checkable
class Clearing(Protocol):
    """A state that says how far each of its rays has no flip, such as those of Isolate and Exhaustive."""

    @property
    def first_flip(self) -> Steps:
        """[rows]: as in every state."""

    @property
    def cleared(self) -> Steps:
        """[rows]: no step up to this one is flipped."""


@runtime_checkable
class Resumable(Search[S], Protocol[S]):
    """A policy that can start in the middle of a ray, such as Isolate."""

    def finer(self, spread: float) -> Self:
        """The same policy for curves that other levels reuse.

        Slopes may leave the range of nearby slopes by `spread` times the width of the range.
        """

    def resume(
        self, cleared: int, margin: float, slope: float, last_step: int, measured: Sequence[tuple[int, float, bool]]
    ) -> S:
        """The state of one ray of which something is known already.

        There is no flip up to `cleared`, where it has this margin and falls by `slope` per step. Points beyond it are
        given as (step, margin, flipped).
        """


def warn_of_slow_way(caller: str, policy: object, lacks: str, consequence: str) -> None:
    """Warns that a search is slow because the policy lacks an ability; Python shows the warning once per process."""
    warnings.warn(
        f"{caller}: the search policy {type(policy).__name__} {lacks}, so {consequence}", UserWarning, stacklevel=2
    )
