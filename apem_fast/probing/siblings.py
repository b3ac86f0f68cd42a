"""The least flip among sibling rays: each is searched only up to the nearest flip known of another.

If only the least epsilon over several rays is wanted, finding each ray's own flip is mostly wasted work. So one ray of
each family leads: the one that flips first by a first-order estimate. The others only have to be cleared up to its
flip. A sibling that flips before it becomes the leader. The policies, and so the answers, are those of `apem`; only
their probes beyond the known flip are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apem_fast.probing.engine import Flips, Progress, find_flips
from apem_fast.probing.prober import Prober, answered
from apem_fast.search import UNDECIDED, Clearing, Measured, Probes, Search, warn_of_slow_way


@dataclass(frozen=True)
class Families:
    """The known least flips of G families of rays."""

    family: NDArray[np.int64]  # (R,) of each ray
    known: NDArray[np.int64]  # (G,) the least step at which one of its rays is known to flip; else last_step + 1
    leader: NDArray[np.int64]  # (G,) that ray; -1 if there is none

    def told(self, ray: NDArray[np.int64], step: NDArray[np.int64]) -> Families:
        """The families with these further flips."""
        known, leader = self.known.copy(), self.leader.copy()
        for r, k in zip(ray, step):
            family = self.family[r]
            if k < known[family]:
                known[family], leader[family] = k, r
        return Families(self.family, known, leader)

    def open(self, state: Clearing) -> NDArray[np.int64]:
        """The rays that could still flip before their family's known flip."""
        beyond = state.cleared >= self.known[self.family] - 1
        return np.flatnonzero((state.first_flip == UNDECIDED) & ~beyond)

    def worthwhile(self, ray: NDArray[np.int64], rank: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Open rays, with those that should be probed now first, and the number of these.

        While the leader's first flip is not settled, it is probed alone, since its siblings can stop there; then all
        are. If no flip is known, the ray of the least rank is probed alone.
        """
        family = self.family[ray]
        leads = self.leader[family] == ray
        families = len(self.known)
        settling = np.zeros(families, bool)
        settling[family[leads]] = True
        first = np.full(families, np.iinfo(np.int64).max)
        np.minimum.at(first, family, rank[ray])
        unled = self.leader[family] == -1
        now = np.where(settling[family], leads, ~unled | (rank[ray] == first[family]))
        order = np.lexsort((rank[ray], ~now))
        return ray[order], int(now.sum())


def find_least_flips(
    prober: Prober,
    family: NDArray[np.int64],
    policy: Search[Any],
    *,
    step: float,
    last_step: int,
    progress: Progress | None = None,
) -> Flips:
    """The least step on the grid of step, 2 step, ..., last_step * step at which any ray of each family flips.

    Args:
        prober: open, and in float32.
        family: (R,) from 0 to G - 1, the family of each ray.
        progress: called with (rays decided, rays in all, probes so far) after every round.

    Returns:
        One entry for each family; a family is censored if all its rays are. With a policy whose states are not
        `Clearing`, every ray is searched to its end, and one warning says so.
    """
    rays, families = prober.rays, int(family.max()) + 1
    state = policy.start(rays.margin, rays.slope * step, last_step)
    is_clearing = isinstance(state, Clearing)
    if not is_clearing:
        warn_of_slow_way(
            "apem_norm",
            policy,
            "does not say how far rays are cleared (its states have no `cleared`)",
            'every shuffle is searched to a flip of its own; search="isolate" goes no further than the nearest one',
        )
        return _least_of_all(prober, family, policy, step=step, last_step=last_step, progress=progress)
    # The rank of each ray by a first-order estimate of its flip.
    with np.errstate(divide="ignore", invalid="ignore"):
        rank = np.argsort(np.argsort(rays.margin / np.maximum(rays.slope, 0), kind="stable"))
    known = Families(family, np.full(families, last_step + 1), np.full(families, -1))
    probes = np.zeros(families, np.int64)
    while len(rows := known.open(state)):
        rows, needed = known.worthwhile(rows, rank)
        # The last batch would not be full, so rays that could wait fill it.
        rows = np.sort(rows[: math.ceil(needed / prober.size) * prober.size])
        row, grid_step = _before(policy.ask(state.only(rows), prober.size), known.known[family[rows]])
        row = rows[row]
        answers = answered(prober, row, step * grid_step.astype(np.float64))
        np.add.at(probes, family[row], answers.probes)
        state = policy.tell(state, Measured(row, grid_step, answers.margin, answers.flipped))
        known = known.told(row[answers.flipped], grid_step[answers.flipped])
        if progress is not None:
            progress(len(rays) - len(known.open(state)), len(rays), int(probes.sum()))
    flipped = known.known <= last_step
    return Flips(np.minimum(known.known, last_step), flipped, probes)


def _before(wanted: Probes, known: NDArray[np.int64]) -> Probes:
    """Probes moved before the known flip: the step just before it is the last one that matters."""
    row, step = wanted.row, np.minimum(wanted.step, known[wanted.row] - 1)
    row, step = np.unique(np.stack([row, step]), axis=1)
    return Probes(row, step)


def _least_of_all(
    prober: Prober,
    family: NDArray[np.int64],
    policy: Search[Any],
    *,
    step: float,
    last_step: int,
    progress: Progress | None,
) -> Flips:
    each = find_flips(prober, policy, step=step, last_step=last_step, progress=progress)
    families = int(family.max()) + 1
    least, flipped, probes = np.full(families, last_step), np.zeros(families, bool), np.zeros(families, np.int64)
    np.minimum.at(least, family, each.step)
    np.logical_or.at(flipped, family, each.flipped)
    np.add.at(probes, family, each.probes)
    return Flips(least, flipped, probes)
