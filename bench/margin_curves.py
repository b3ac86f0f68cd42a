"""Margin curves on which search policies are compared without a model: scripted families, and real rays, scanned.

A policy sees margins only, so a curve is all it needs. Scripted curves have 1,024 steps and are made to be harder than
real ones; real ones are the scans that `bench.census` keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apem_fast.search import CENSORED, Measured, Search

STEPS = 1024
Curves = NDArray[np.float64]
"""(rays, steps + 1): margins from step 0 on."""


@dataclass(frozen=True)
class Rays:
    """Margins along rays of any length; beyond the last one the margin stays as it is there."""

    values: NDArray[np.float64]  # all rays' margins, one after the other, from step 0 on
    start: NDArray[np.int64]  # (R,) where each ray's begin
    length: NDArray[np.int64]  # (R,) how many each has
    slope: NDArray[np.float64]  # (R,) first-order estimate of the fall a step at 0
    first_flip: NDArray[np.int64]  # (R,) or CENSORED
    last_step: int

    def __len__(self) -> int:
        return len(self.start)

    def at(self, ray: NDArray[np.int64], step: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.values[self.start[ray] + np.minimum(step, self.length[ray] - 1)]


def scripted(curves: Curves, last_step: int | None = None) -> Rays:
    """The slope at 0 is the true one, as a gradient gives it."""
    rays, points = curves.shape
    last_step = points - 1 if last_step is None else last_step
    negative = curves[:, 1 : last_step + 1] < 0
    first = np.where(negative.any(axis=1), negative.argmax(axis=1) + 1, CENSORED)
    return Rays(
        curves.ravel(),
        np.arange(rays) * points,
        np.full(rays, points),
        curves[:, 0] - curves[:, 1],
        first,
        last_step,
    )


def joined(parts: list[Rays]) -> Rays:
    """Several sets of one limit as one."""
    offset = np.cumsum([0] + [len(part.values) for part in parts])
    return Rays(
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.start + o for p, o in zip(parts, offset)]),
        np.concatenate([p.length for p in parts]),
        np.concatenate([p.slope for p in parts]),
        np.concatenate([p.first_flip for p in parts]),
        parts[0].last_step,
    )


def scanned(files: list[Path]) -> Rays:
    """Kept scans: every margin up to the flip; up to twice as far a few points with straight lines between."""
    from bench.census import Scan

    parts = []
    for path in files:
        scan = Scan.load(path)
        order = np.lexsort((scan.curve_step, scan.curve_ray))
        ray, step, margin = scan.curve_ray[order], scan.curve_step[order], scan.curve_margin[order]
        values, length = [], []
        for r, (begin, end) in enumerate(
            zip(*(np.searchsorted(ray, np.arange(len(scan.flip)), s) for s in ("left", "right")))
        ):
            known, at = (
                np.concatenate([[0], step[begin:end]]),
                np.concatenate([scan.margin[r : r + 1], margin[begin:end]]),
            )
            curve = np.interp(np.arange(known[-1] + 1), known, at)
            if scan.flipped[r]:
                curve[scan.flip[r]] = min(curve[scan.flip[r]], -1e-300)  # a tie can be a flip
            values.append(curve)
            length.append(len(curve))
        parts.append(
            Rays(
                np.concatenate(values),
                np.cumsum([0, *length[:-1]]),
                np.array(length),
                scan.slope,
                np.where(scan.flipped, scan.flip, CENSORED),
                scan.last_step,
            )
        )
    return joined(parts)


# -- scripted families -------------------------------------------------------------------------------------------


def straight(random: np.random.Generator, rays: int, t: NDArray) -> Curves:
    return 1 - random.uniform(0.3, 5, (rays, 1)) * t


def least_of_lines(random: np.random.Generator, rays: int, t: NDArray) -> Curves:
    """Five classes whose logits are straight."""
    height, slope = random.uniform(1, 3, (rays, 5, 1)), random.uniform(-1, 4, (rays, 5, 1))
    curves = (height - slope * t).min(axis=1)
    return curves / curves[:, :1]


def plateaus(random: np.random.Generator, rays: int, t: NDArray) -> Curves:
    """A fall, a plateau, and a fall from it."""
    first, length = random.uniform(0.05, 0.4, (rays, 1)), random.uniform(0.1, 0.6, (rays, 1))
    height, slope = random.uniform(0.05, 0.8, (rays, 1)), random.uniform(0.5, 4, (rays, 1))
    return np.where(t < first, 1 - (1 - height) * t / first, height - slope * np.maximum(t - first - length, 0))


def smooth(length: float) -> Callable[..., Curves]:
    """Gaussian processes of a length scale, a share of the ray, around a fall."""

    def curves(random: np.random.Generator, rays: int, t: NDArray) -> Curves:
        # Random Fourier features: a squared exponential covariance of that length.
        features = 96
        frequency = random.normal(0, 1 / length, (rays, features, 1))
        phase = random.uniform(0, 2 * np.pi, (rays, features, 1))
        wave = np.empty((rays, len(t)))
        for some in np.array_split(np.arange(rays), max(1, rays // 100)):
            wave[some] = np.sqrt(2 / features) * np.cos(frequency[some] * t + phase[some]).sum(axis=1)
        return 1 - random.uniform(0, 2, (rays, 1)) * t + 0.3 * (wave - wave[:, :1])

    return curves


def dip(width: float) -> Callable[..., Curves]:
    """One Gaussian dip through 0, so wide at half its depth, in a straight fall that does not flip itself or later."""

    def curves(random: np.random.Generator, rays: int, t: NDArray) -> Curves:
        line = 1 - random.uniform(0, 1.4, (rays, 1)) * t
        centre = random.uniform(0.15, 0.95, (rays, 1))
        there = 1 - (1 - line[:, -1:]) * centre
        depth = there * random.uniform(1.05, 2.5, (rays, 1))
        return line - depth * np.exp(-0.5 * ((t - centre) / (width / 2.355)) ** 2)

    return curves


def jumps(random: np.random.Generator, rays: int, t: NDArray) -> Curves:
    """A fall that bends, with three jumps up or down."""
    curves = 1 - random.uniform(0.2, 2.5, (rays, 1)) * t ** random.uniform(0.6, 1.6, (rays, 1))
    for _ in range(3):
        curves += random.normal(0, 0.25, (rays, 1)) * (t > random.uniform(0.05, 1, (rays, 1)))
    return curves


def decay_with_sinus(random: np.random.Generator, rays: int, t: NDArray) -> Curves:
    decay = np.exp(-t / random.uniform(0.05, 0.5, (rays, 1)))
    sinus = np.sin(2 * np.pi * t * random.uniform(1, 8, (rays, 1)) + random.uniform(0, 2 * np.pi, (rays, 1)))
    curves = decay + random.uniform(0.02, 0.2, (rays, 1)) * sinus + random.uniform(-0.05, 0.25, (rays, 1))
    return curves - np.minimum(curves[:, :1] - 0.1, 0)


FAMILIES: dict[str, Callable[..., Curves]] = {
    "straight": straight,
    "least of lines": least_of_lines,
    "plateaus": plateaus,
    "smooth, 1/8": smooth(1 / 8),
    "smooth, 1/16": smooth(1 / 16),
    "smooth, 1/32": smooth(1 / 32),
    "dip, 1/8": dip(1 / 8),
    "dip, 1/16": dip(1 / 16),
    "dip, 1/32": dip(1 / 32),
    "jumps": jumps,
    "decay with sinus": decay_with_sinus,
}


def family(name: str, rays: int, seed: int = 0) -> Rays:
    """Curves of a family; those that would start unclassified are turned round."""
    random = np.random.default_rng([seed, list(FAMILIES).index(name)])
    curves = FAMILIES[name](random, rays, np.arange(STEPS + 1) / STEPS)
    return scripted(curves)


# -- policies on them --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What a policy made of rays."""

    missed: NDArray[np.bool_]  # (R,) another answer than the first flip
    probes: NDArray[np.int64]  # (R,)
    answer: NDArray[np.int64]  # (R,)


def search(policy: Search, rays: Rays, room: int = 1) -> Found:
    everyone = np.arange(len(rays))
    state = policy.start(rays.at(everyone, np.zeros(len(rays), np.int64)), rays.slope, rays.last_step)
    probes = np.zeros(len(rays), np.int64)
    while len(state.undecided):
        row, step = policy.ask(state, room)
        np.add.at(probes, row, 1)
        margin = rays.at(row, step)
        state = policy.tell(state, Measured(row, step, margin, margin < 0))
    return Found(state.first_flip != rays.first_flip, probes, state.first_flip)
