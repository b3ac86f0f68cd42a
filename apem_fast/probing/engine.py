"""The loop between a search policy and a model: it owns the batches, the limits, the progress and the errors.

A window of rays is searched at a time. In each round the policy names the probes that it wants, as many of them as fill
whole batches are run, and waiting rays replace those that are decided. So every batch but the last is full, and a ray
that has flipped takes no more probes. On a GPU the window is split into lanes that take turns: while the device runs
the probes of one, the host prepares those of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apem_fast.probing.prober import Prober
from apem_fast.probing.rays import Rays
from apem_fast.running.waiting import Waiting, in_turns
from apem_fast.search import CENSORED, UNDECIDED, Clearing, Measured, Search, State

Progress = Callable[[int, int, int], None]
"""Called with (rays decided, rays in all, probes so far)."""

BATCHES_A_ROUND = 4  # with so many running, over all lanes, a GPU never waits while the host reads answers


@dataclass(frozen=True)
class Flips:
    """The first flips of R rays."""

    step: NDArray[np.int64]  # (R,) the least grid step that flips; the last step if none does
    flipped: NDArray[np.bool_]  # (R,) False: censored
    probes: NDArray[np.int64]  # (R,) model inputs that were run for it


def find_flips(
    prober: Prober,
    policy: Search[Any],
    *,
    step: float,
    last_step: int,
    progress: Progress | None = None,
) -> Flips:
    """The first flip of every ray of `prober` on the grid of step, 2 step, ..., last_step * step."""
    search = _SharedSearch(prober, policy, step, last_step, progress)
    in_turns([search.lane(number) for number in range(prober.lanes)])
    flipped = search.first_flip != CENSORED
    return Flips(np.where(flipped, search.first_flip, last_step), flipped, search.probes)


@dataclass
class _SharedSearch:
    """The state that the lanes share: waiting rays, and the results of decided ones."""

    prober: Prober
    policy: Search[Any]
    step: float
    last_step: int
    progress: Progress | None
    rays: Rays = field(init=False)
    first_flip: NDArray[np.int64] = field(init=False)
    probes: NDArray[np.int64] = field(init=False)
    waiting: int = 0  # the first ray that no lane has taken
    left: list[tuple[NDArray[np.int64], State]] = field(default_factory=list)  # rays for the next lane
    decided: dict[int, int] = field(default_factory=dict)  # first flips by ray that are not confirmed yet
    cleared: dict[int, int] = field(default_factory=dict)  # how far a policy searched along rays that it censored
    rows: dict[int, int] = field(default_factory=dict)  # the number of rays of each lane that has not ended

    def __post_init__(self) -> None:
        self.rays = self.prober.rays
        self.first_flip = np.full(len(self.rays), UNDECIDED)
        self.probes = np.zeros(len(self.rays), np.int64)
        self.rows = dict.fromkeys(range(self.prober.lanes), 0)

    def start(self, ray: NDArray[np.int64]) -> State:
        return self.policy.start(self.rays.margin[ray], self.rays.slope[ray] * self.step, self.last_step)

    def window(self) -> int:
        """The greatest number of rays that a lane searches at a time."""
        return BATCHES_A_ROUND * self.prober.size // self.prober.lanes

    def lane(self, number: int) -> Waiting[None]:
        """Takes rays and searches them until none is left."""
        ray_of_row = np.arange(0)
        state = self.start(ray_of_row)
        while True:
            ray_of_row, state = self.filled(ray_of_row, state)
            self.rows[number] = len(ray_of_row)
            last = len(self.rows) == 1
            if self.cedes(ray_of_row, state) or not (len(ray_of_row) or (last and self.decided)):
                del self.rows[number]
                return
            if len(ray_of_row):
                ray_of_row, state = yield from self.round(ray_of_row, state)
            if len(self.decided) >= self.prober.size or (last and not len(ray_of_row)):
                yield from self.confirm()
            if self.progress is not None:
                done = int(np.count_nonzero(self.first_flip != UNDECIDED))
                self.progress(done, len(self.rays), int(self.probes.sum()))

    def filled(self, ray_of_row: NDArray[np.int64], state: State) -> tuple[NDArray[np.int64], State]:
        """These rays, those that were left, and waiting ones while there is room."""
        for ray, of_others in self.left:
            ray_of_row, state = np.concatenate([ray_of_row, ray]), state.joined(of_others)
        self.left.clear()
        fresh = np.arange(self.waiting, min(len(self.rays), self.waiting + max(0, self.window() - len(ray_of_row))))
        if len(fresh):
            self.waiting += len(fresh)
            ray_of_row, state = np.concatenate([ray_of_row, fresh]), state.joined(self.start(fresh))
        return ray_of_row, state

    def cedes(self, ray_of_row: NDArray[np.int64], state: State) -> bool:
        """Whether a lane leaves its rays to another because one batch holds all: two half-empty batches cost more."""
        if len(self.rows) == 1 or self.waiting < len(self.rays) or sum(self.rows.values()) > self.prober.size:
            return False
        self.left.append((ray_of_row, state))
        return True

    def round(self, ray_of_row: NDArray[np.int64], state: State) -> Waiting[tuple[NDArray[np.int64], State]]:
        """Asks the policy, runs whole batches, tells the policy; returns the undecided rays with their state."""
        size = self.prober.size
        row, grid_step = self.policy.ask(state, size)
        whole = min(len(row) - len(row) % size, BATCHES_A_ROUND * size) or len(row)
        row, grid_step = _whole_rows(row, grid_step, whole)
        answers = yield from self.prober.answers(ray_of_row[row], self.step * grid_step.astype(np.float64))
        np.add.at(self.probes, ray_of_row[row], answers.probes)
        state = self.policy.tell(state, Measured(row, grid_step, answers.margin, answers.flipped))

        done = np.flatnonzero(state.first_flip != UNDECIDED)
        if isinstance(state, Clearing):
            self.cleared.update(zip(ray_of_row[done].tolist(), state.cleared[done].tolist()))
        self.decided.update(zip(ray_of_row[done].tolist(), state.first_flip[done].tolist()))
        return ray_of_row[state.undecided], state.only(state.undecided)

    def confirm(self) -> Waiting[None]:
        """Confirms decided rays, many at a time, since each takes few probes."""
        ray, flip = np.array(list(self.decided), np.int64), np.array(list(self.decided.values()), np.int64)
        self.decided.clear()
        cleared = [max(self.last_step, self.cleared.pop(r, 0)) for r in ray.tolist()]
        last_unflipped = np.where(flip == CENSORED, cleared, flip - 1)
        refuted, probes = yield from self.prober.confirm(ray, last_unflipped * self.step)
        self.probes[ray] += probes
        self.first_flip[ray[~refuted]] = flip[~refuted]
        if refuted.any():  # the policy was told wrong margins, so such a ray starts anew
            self.left.append((ray[refuted], self.start(ray[refuted])))


def _whole_rows(row: NDArray[np.int64], step: NDArray[np.int64], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The first `count` probes, but never only some of those for one row."""
    if count < len(row):
        while count > 0 and row[count - 1] == row[count]:
            count -= 1
        if count == 0:
            count = int(np.searchsorted(row, row[0], side="right"))
    return row[:count], step[:count]
