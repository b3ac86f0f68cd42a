"""What answers probes, as the search sees it: the contract between the engine and whatever runs a model.

A probe is one point of a ray, and so one input of the model. What is asked is always the same: the margins at some
probes. `BatchProber` asks the model in batches, `ScreeningProber` asks a low precision first; a test or a benchmark
answers from a script.
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
    """The margins at M probes, and what they took."""

    margin: NDArray[np.float64]  # (M,)
    flipped: NDArray[np.bool_]  # (M,)
    noise: NDArray[np.float64]  # (M,) how large a margin may be noise
    probes: NDArray[np.int64]  # (M,) model inputs it took: 2 where the margin was so close that it was run again, alone


class Prober(Protocol):
    """Answers probes of `rays`."""

    @property
    def rays(self) -> Rays:
        """The R rays that probes are on."""

    @property
    def size(self) -> int:
        """How many probes fill a batch."""

    @property
    def lanes(self) -> int:
        """How many searches should go on side by side, so that a GPU computes for one while the host thinks for
        another."""

    def answers(self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Waiting[Answers]:
        """Margins and flips of the probes (ray[i], epsilon[i]), with pauses while the device works."""

    def confirm(
        self, ray: NDArray[np.int64], epsilon: NDArray[np.float64]
    ) -> Waiting[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """Which of these answers, the last unflipped ones of decided rays, turn out wrong; and the probes it took."""


def answered(prober: Prober, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Answers:
    """The answers, waiting for them."""
    return result_of(prober.answers(ray, epsilon))
