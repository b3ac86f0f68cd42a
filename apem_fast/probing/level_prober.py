"""Probes at filter levels: what the explanation filter asks, on rays of its own for every level it looks at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from apem_fast.probing.batch_prober import BatchProber
from apem_fast.probing.prober import Answers
from apem_fast.probing.rays import Rays
from apem_fast.running.waiting import Waiting

GRADIENT_COST = 3  # probes that a forward and a backward pass of one input take the time of


class LevelProber:
    """Asks a `BatchProber` about other rays over its images and maps: map i, image i's, filtered up to some level."""

    def __init__(self, prober: BatchProber):
        self._prober = prober

    @property
    def size(self) -> int:
        """How many probes fill a batch."""
        return self._prober.size

    @property
    def lanes(self) -> int:
        """As of every `Prober`."""
        return self._prober.lanes

    def rays(
        self,
        image: NDArray[np.int64],
        irrelevance: NDArray[np.bool_],
        norm: NDArray[np.float64],
        level: NDArray[np.float64],
    ) -> Rays:
        """As many rays as there are rows, all arguments (M,): along image i's map, the values up to `level` taken as 0,
        or along 1 minus that, whose l1 norm is `norm`."""
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
        """One probe on each of these rays, (M,)."""
        return self._prober.answers(np.arange(len(rays)), epsilon, rays)

    def margin_gradient(self, rays: Rays, epsilon: float) -> Tensor:
        """How the margin at one probe of the one ray there is grows with what each map value lets through, (1 or C, H,
        W) float64 like the map: the margin's gradient with respect to the model's input times the sign, summed over the
        channels that share a map value. It costs GRADIENT_COST probes."""
        through = (self._prober.input_gradient(0, epsilon, rays) * rays.sign[rays.image[0]]).double()
        if rays.relevance.shape[1] == 1:
            through = through.sum(dim=0, keepdim=True)
        return through.contiguous()
