"""Probes as columns of numbers, which is how they travel to the model's device, and what is made of them there."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apem_fast import ops
from apem_fast.probing.rays import Rays
from apem_fast.running.segments import OnSegments


def columns_of(rays: Rays, ray: NDArray[np.int64], epsilon: NDArray[np.float64]) -> Tensor:
    """(6, M) int64 on the host: image, map, irrelevance, and the bits of norm, epsilon and level of each probe."""
    whole = rays.image[ray], rays.map[ray], rays.irrelevance[ray].astype(np.int64)
    real = (_bits(column) for column in (rays.norm[ray], epsilon, rays.level[ray]))
    return torch.from_numpy(np.stack([*whole, *real]))


def singly(columns: Tensor) -> list[Tensor]:
    """The columns of each probe, (6, 1)."""
    return [one.contiguous() for one in columns.split(1, dim=1)]


def _bits(column: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bits of float64 numbers as integers, to be copied with other integers. Other types are refused."""
    if column.dtype != np.float64:
        raise TypeError(f"probe columns must be float64 (got {column.dtype})")
    return np.ascontiguousarray(column).view(np.int64)


@dataclass(frozen=True)
class ProbesOf:
    """The `Recipe` of probes: on these rays, or on any others over the same images and maps."""

    rays: Rays
    place: Hashable  # where their tensors lie
    key: Hashable = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.place, self.rays.constants))

    @property
    def device(self) -> torch.device:
        return self.rays.images.device

    def inputs(self, columns: Tensor) -> Tensor:
        """The model's inputs: (M, C, H, W)."""
        image, map, irrelevance = columns[:3]
        norm, epsilon, level = columns[3:].view(torch.float64)
        return self.rays.inputs(norm, image, map, irrelevance != 0, epsilon, level)

    def on_segments(self, columns: Tensor, last: Tensor) -> OnSegments:
        """What the model receives on the segments from these probes to others of the same rays."""
        image, map, irrelevance = columns[:3]
        norm, first, _ = columns[3:].view(torch.float64)
        return self.rays.on_segments(norm, image, map, irrelevance != 0, first, last[4].view(torch.float64))

    def answers(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(3, M) float64: margin, whether flipped, and the greatest logit."""
        return ops.probe_answers(logits, self.labels(columns), self.above(columns))

    def labels(self, columns: Tensor) -> Tensor:
        """(M,) of each probe."""
        return self.rays.labels[columns[0]]

    def above(self, columns: Tensor) -> Tensor | None:
        """(M, classes): which do not take part, of each probe."""
        return None if self.rays.above is None else self.rays.above[columns[0]]

    def unlike_any(self, size: int) -> Tensor:
        """Columns of a step backwards on the first map, which no search takes."""
        norm, epsilon, level = (np.full(size, value) for value in (1.0, -1.0, 0.0))
        return torch.from_numpy(np.stack([*np.zeros((3, size), np.int64), *map(_bits, (norm, epsilon, level))]))
