"""Proves that flips are the first ones: segments of the rays before them are bounded until none remains open."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from apem_fast.probing.engine import Flips, Progress
from apem_fast.probing.rays import Rays
from apem_fast.search import Certified, Segment

SEGMENT_COST = 3  # a segment costs as much as so many model inputs: its offset, slope and error


class Proving(Protocol):
    """The interface of a proof to the model."""

    @property
    def rays(self) -> Rays:
        """The R rays."""

    @property
    def segments_at_once(self) -> int:
        """How many segments fill a batch."""

    def least_margins(
        self, ray: NDArray[np.int64], first: NDArray[np.float64], last: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds segments, each from epsilon first[i] to last[i] of ray[i].

        Returns for each a number below every margin on it, and the approximate margin in its middle.
        """

    def flips_of_record(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the answer of record is a flip at these points, each alone."""


def proved(
    prober: Proving, flips: Flips, policy: Certified, *, step: float, last_step: int, progress: Progress | None = None
) -> Flips:
    """The first flips, all proved: a given flip if it is the first, and otherwise the first one.

    Args:
        flips: the flips of the prober's rays that a search found.
        policy: splits segments.
        step, last_step: of the grid.
        progress: called with (rays proved, rays in all, probes so far).

    Returns:
        Flips whose `probes` count a segment as SEGMENT_COST.
    """
    work = _Proof(prober, flips, policy, step, last_step)
    while work.open:
        work.round()
        if progress is not None:
            progress(len(flips.step) - len(work.open), len(flips.step), int(work.probes.sum()))
    flipped = work.first <= last_step
    return replace(flips, step=np.minimum(work.first, last_step), flipped=flipped, probes=work.probes)


class _Proof:
    """The proved and the open segments of each ray."""

    def __init__(self, prober: Proving, flips: Flips, policy: Certified, step: float, last_step: int):
        self.prober, self.policy, self.step = prober, policy, step
        self.probes = flips.probes.copy()
        self.first = np.where(flips.flipped, flips.step, last_step + 1)
        """The least step known to flip, (R,); one beyond the last step if there is none."""
        found = np.flatnonzero(flips.flipped)
        confirmed = self.ask(found, self.first[found])
        self.open: dict[int, list[Segment]] = {}  # by ray, the nearest segment last
        for ray, at in enumerate(self.first.tolist()):
            self.open[ray] = [(1, at - 1)] if at > 1 else []
        for ray in found[~confirmed].tolist():  # the search took rounding of float32 for a flip
            at = int(self.first[ray])
            self.first[ray] = last_step + 1
            self.open[ray] = [(at + 1, last_step)] * (at < last_step) + self.open[ray]
        self.open = {ray: segments for ray, segments in self.open.items() if segments}

    def ask(self, ray: NDArray[np.int64], step: NDArray[np.int64]) -> NDArray[np.bool_]:
        np.add.at(self.probes, ray, 1)
        return self.prober.flips_of_record(ray, step.astype(np.float64) * self.step)

    def round(self) -> None:
        """Bounds a batch of the nearest segments, splits those that remain open, and computes points of short ones."""
        at_once = self.prober.segments_at_once
        rays = [*self.open][:at_once]
        each = at_once // len(rays)
        chosen = [(ray, self.open[ray].pop()) for ray in rays for _ in range(min(each, len(self.open[ray])))]
        ray = np.array([ray for ray, _ in chosen])
        ends = np.array([segment for _, segment in chosen], np.float64) * self.step
        lowest, middle = self.prober.least_margins(ray, ends[:, 0], ends[:, 1])
        np.add.at(self.probes, ray, SEGMENT_COST)
        left = [
            (ray, piece)
            for (ray, segment), low, at_middle in zip(chosen, lowest.tolist(), middle.tolist())
            if not low > 0  # NaN proves nothing
            for piece in self.policy.split(segment, low, at_middle)
        ]
        whole = set(chosen)
        for ray_, segment in reversed([one for one in left if one not in whole]):
            self.open[ray_].append(segment)
        self.ask_points([one for one in left if one in whole])
        self.open = {
            ray_: kept
            for ray_, segments in self.open.items()
            if (kept := [(a, min(b, self.first[ray_] - 1)) for a, b in segments if a < self.first[ray_]])
        }

    def ask_points(self, segments: list[tuple[int, Segment]]) -> None:
        """Computes every point of these segments. Points after a flip are computed in vain."""
        points = [(ray, step) for ray, (a, b) in segments for step in range(a, b + 1) if step < self.first[ray]]
        if points:
            ray, step = np.array(points).T
            flipped = self.ask(ray, step)
            np.minimum.at(self.first, ray[flipped], step[flipped])
