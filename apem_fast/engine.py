"""The loop between a search policy and a model: it owns the batches, the limits, the progress and the raising.

A window of rays is under search at a time. Each round the policy names the probes it wants, as many of them as fill
whole batches are run, and rays that are decided make room for waiting ones: every forward pass but the last is
full, and a ray that has flipped costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apem_fast.rays import Prober, Rays
from apem_fast.search import CENSORED, UNDECIDED, Measured, Search, State

Progress = Callable[[int, int, int], None]
"""Called with (rays decided, rays in all, probes so far)."""

PASSES_A_ROUND = 4  # enough of them under way that reading their answers never keeps a GPU waiting


@dataclass(frozen=True)
class Flips:
    """Where R rays flip."""

    step: NDArray[np.int64]  # (R,) the least grid step that flips; the last step where none does
    flipped: NDArray[np.bool_]  # (R,) False: censored
    probes: NDArray[np.int64]  # (R,) model inputs that were run for it


def find_flips(
    prober: Prober,
    rays: Rays,
    policy: Search,
    *,
    step: float,
    last_step: int,
    progress: Progress | None = None,
) -> Flips:
    """The first flip of every ray on the grid step, 2 step, ..., last_step * step; `prober` is open and probes `rays`."""
    total = len(rays)
    first_flip, probes = np.full(total, UNDECIDED), np.zeros(total, np.int64)

    def start(ray: NDArray[np.int64]) -> State:
        return policy.start(rays.margin[ray], rays.slope[ray] * step, last_step)

    ray_of_row = np.arange(0)
    state = start(ray_of_row)
    done = waiting = 0
    while done < total:
        fresh = np.arange(waiting, min(total, waiting + max(0, PASSES_A_ROUND * prober.size - len(ray_of_row))))
        if len(fresh):
            waiting += len(fresh)
            ray_of_row, state = np.concatenate([ray_of_row, fresh]), state.joined(start(fresh))

        row, grid_step = policy.ask(state, prober.size)
        whole = min(len(row) - len(row) % prober.size, PASSES_A_ROUND * prober.size) or len(row)
        row, grid_step = _whole_rows(row, grid_step, whole)
        answers = prober(ray_of_row[row], grid_step * step)
        np.add.at(probes, ray_of_row[row], answers.runs)
        state = policy.tell(state, Measured(row, grid_step, answers.margin, answers.flipped))

        decided = np.flatnonzero(state.first_flip != UNDECIDED)
        if len(decided):
            ray, flip = ray_of_row[decided], state.first_flip[decided]
            refuted, runs = prober.confirm(ray, np.where(flip == CENSORED, last_step, flip - 1) * step)
            probes[ray] += runs
            first_flip[ray[~refuted]] = flip[~refuted]
            done += int((~refuted).sum())
            # What was told of a refuted ray cannot be trusted: it starts anew.
            ray_of_row = np.concatenate([ray_of_row[state.undecided], ray[refuted]])
            state = state.only(state.undecided).joined(start(ray[refuted]))
        if progress is not None:
            progress(done, total, int(probes.sum()))
    flipped = first_flip != CENSORED
    return Flips(np.where(flipped, first_flip, last_step), flipped, probes)


def _whole_rows(row: NDArray[np.int64], step: NDArray[np.int64], count: int) -> tuple[NDArray, NDArray]:
    """The first `count` probes, but never a part of what a policy asked of one row."""
    if count < len(row):
        while count > 0 and row[count - 1] == row[count]:
            count -= 1
        if count == 0:
            count = int(np.searchsorted(row, row[0], side="right"))
    return row[:count], step[:count]
