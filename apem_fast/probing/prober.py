"""The interface between the engine and whatever answers probes.

A probe is one point of a ray, and so one input of the model. The engine only asks for the margins at probes.
`BatchProber` runs the model in batches, `ScreeningProber` tries a low precision first, and a test or a benchmark can
answer from a script.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from apem_fast.probing.rays import Rays
from apem_fast.running.waiting import Waiting, result_of


@dataclass(frozen=True)
class Answers:
    """The margins at M probes, and their cost."""

    margin: NDArray[np.float64]  # (M,)
    flipped: NDArray[np.bool_]  # (M,)
    noise: NDArray[np.float64]  # (M,) a margin of up to this size may be rounding noise
    probes: NDArray[np.int64]  # (M,) model inputs that were run: 2 if it was run again alone


class Prober(Protocol):
    """Answers probes of `rays`."""

    @property
    def rays(self) -> Rays:
        """The R rays of the probes."""

    @property
    def size(self) -> int:
        """How many probes fill a batch."""

    @property
    def lanes(self) -> int:
        """How many searches should run side by side, so that a GPU runs one while the host prepares another."""

    def answers(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Waiting[Answers]:
        """The answers to the probes (ray[i], epsilon[i]), as a coroutine that pauses while the device works."""

    def confirm(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """Which of these answers, the last unflipped ones of decided rays, are wrong; and the probes that this took."""


def answered(prober: Prober, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Answers:
    """The answers. Waits for them."""
    return result_of(prober.answers(ray, epsilon))
