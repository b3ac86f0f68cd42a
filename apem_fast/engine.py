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
from torch import nn

from apem_fast.rays import Prober, Rays, best_plan, undisturbed
from apem_fast.search import CENSORED, UNDECIDED, Measured, Search, State

Progress = Callable[[int, int, int], None]
"""Called with (rays decided, rays in all, probes so far)."""

BATCHES_IN_WINDOW = 4  # enough passes under way that reading their answers never keeps a GPU waiting


@dataclass(frozen=True)
class Flips:
    """Where R rays flip."""

    step: NDArray[np.int64]  # (R,) the least grid step that flips; the last step where none does
    flipped: NDArray[np.bool_]  # (R,) False: censored
    probes: NDArray[np.int64]  # (R,) model inputs that were run for it


def find_flips(
    model: nn.Module,
    rays: Rays,
    policy: Search,
    *,
    step: float,
    last_step: int,
    batch_size: int | None,
    progress: Progress | None = None,
) -> Flips:
    """The first flip of every ray on the grid step, 2 step, ..., last_step * step."""
    total = len(rays)
    flip_step, probes = np.full(total, UNDECIDED), np.zeros(total, np.int64)
    if not total:
        return Flips(flip_step, np.zeros(0, bool), probes)
    plan = best_plan(model, rays, batch_size)
    with undisturbed(model, plan.memory_format):
        prober = Prober(model, rays, plan)
        window = min(total, BATCHES_IN_WINDOW * plan.size)
        ray_of_row = np.arange(window)
        waiting = window

        def start(ray: NDArray[np.int64]) -> State:
            return policy.start(rays.margin[ray], rays.slope[ray] * step, last_step)

        state = start(ray_of_row)
        done = 0
        while done < total:
            row, grid_step = policy.ask(state, prober.plan.size)
            whole = len(row) - len(row) % prober.plan.size or len(row)
            row, grid_step = _whole_rows(row, grid_step, whole)
            ray = ray_of_row[row]
            answers = prober(ray, grid_step * step)
            np.add.at(probes, ray, answers.runs)
            state = policy.tell(state, Measured(row, grid_step, answers.margin, answers.flipped))

            decided = np.flatnonzero(state.first_flip != UNDECIDED)
            decided = decided[flip_step[ray_of_row[decided]] == UNDECIDED]
            flip_step[ray_of_row[decided]] = state.first_flip[decided]
            done += len(decided)
            refill = decided[: total - waiting]
            if len(refill):
                fresh = np.arange(waiting, waiting + len(refill))
                waiting += len(refill)
                ray_of_row[refill] = fresh
                state = state.with_rows(refill, start(fresh))
            if progress is not None:
                progress(done, total, int(probes.sum()))
    flipped = flip_step != CENSORED
    return Flips(np.where(flipped, flip_step, last_step), flipped, probes)


def _whole_rows(row: NDArray[np.int64], step: NDArray[np.int64], count: int) -> tuple[NDArray, NDArray]:
    """The first `count` probes, but never a part of what a policy asked of one row."""
    if count < len(row):
        while count > 0 and row[count - 1] == row[count]:
            count -= 1
        if count == 0:
            count = int(np.searchsorted(row, row[0], side="right"))
    return row[:count], step[:count]
