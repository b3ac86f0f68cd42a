"""Probes at filter levels, which the explanation filter asks: each level has its own rays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from apem_fast.probing.batch_prober import BatchProber
from apem_fast.probing.prober import Answers
from apem_fast.probing.rays import Rays
from apem_fast.running.waiting import Waiting

GRADIENT_COST = 3  # a forward and a backward pass of one input take as long as so many probes


class LevelProber:
    """Asks a `BatchProber` for probes on other rays: along map i of image i, filtered up to some level."""

    def __init__(self, prober: BatchProber):
        self._prober = prober

    @property
    def size(self) -> int:
        """How many probes fill a batch."""
        return self._prober.size

    @property
    def lanes(self) -> int:
        """See `Prober`."""
        return self._prober.lanes

    def rays(
        self,
        image: NDArray[np.int64],
        irrelevance: NDArray[np.bool_],
        norm: NDArray[np.float64],
        level: NDArray[np.float64],
    ) -> Rays:
        """M rays, for arguments (M,): along image i's map with values up to `level` as 0, or along 1 minus that.

        `norm` is the l1 norm of the filtered map, or of 1 minus it.
        """
        unknown = np.full(len(image), np.nan)
        return replace(
            self._prober.rays,
            image=image,
            map=image,
            irrelevance=irrelevance,
            norm=norm,
            level=level,
            margin=unknown,
            slope=unknown,
        )

    def answers(self, rays: Rays, epsilon: NDArray[np.float64]) -> Waiting[Answers]:
        """The answers to one probe on each of these rays, (M,)."""
        return self._prober.answers(np.arange(len(rays)), epsilon, rays)

    def margin_gradient(self, rays: Rays, epsilon: float) -> Tensor:
        """How the margin at one probe of a single ray changes with each value of the map: (1 or C, H, W) float64.

        It is the margin's gradient with respect to the model's input, times the sign, summed over the channels that
        share a value of the map. It costs GRADIENT_COST probes.
        """
        through = (self._prober.input_gradient(0, epsilon, rays) * rays.sign[rays.image[0]]).double()
        if rays.relevance.shape[1] == 1:
            through = through.sum(dim=0, keepdim=True)
        return through.contiguous()
