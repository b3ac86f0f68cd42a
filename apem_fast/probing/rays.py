"""Rays: the half lines x + epsilon * direction along which the model is probed. Each is stored as a few numbers.

Epsilon is in the space of the tensors that the model receives (after normalisation, if images are normalised).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apem_fast import ops
from apem_fast.running.clean import Clean
from apem_fast.running.segments import UNIT, OnSegments

PRODUCTS_AT_ONCE = {"cpu": 2**19, "cuda": 2**26}  # for the slopes: fits a CPU's cache, fills a GPU


@dataclass(frozen=True)
class Rays:
    """R rays over N images and their maps. Only a few numbers are stored for each ray.

    A ray's direction is v / norm * sign. Here v is the map with values of at most `level` set to 0, or 1 minus that if
    `irrelevance`.
    """

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,) int64
    sign: Tensor  # (N, C, H, W) int8
    relevance: Tensor  # (maps, 1 or C, H, W)
    image: NDArray[np.int64]  # (R,) row of images
    map: NDArray[np.int64]  # (R,) row of relevance
    irrelevance: NDArray[np.bool_]  # (R,)
    norm: NDArray[np.float64]  # (R,) l1 norm of v, after the map is broadcast to the channels
    level: NDArray[np.float64]  # (R,) filter level: values of the map up to this one count as 0; 0 filters nothing
    margin: NDArray[np.float64]  # (R,) at epsilon 0
    slope: NDArray[np.float64]  # (R,) first-order estimate of the margin's fall per unit of epsilon
    lower: float | Tensor | None = None  # bound of perturbed images; a tensor (C, 1, 1) has one for each channel
    upper: float | Tensor | None = None
    above: Tensor | None = None  # (N, classes) bool: classes that do not take part, see `Clean`

    def __len__(self) -> int:
        return len(self.image)

    def only(self, ray: NDArray[np.int64]) -> Self:
        """The chosen rays, over the same images and maps."""
        names = ("image", "map", "irrelevance", "norm", "level", "margin", "slope")
        return replace(self, **{name: getattr(self, name)[ray] for name in names})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        return {name: value for name, value in self._fields() if isinstance(value, Tensor)}

    @property
    def constants(self) -> Hashable:
        """What else goes into the inputs and is not of a single ray."""
        other = (Tensor, np.ndarray)
        return type(self), tuple((name, value) for name, value in self._fields() if not isinstance(value, other))

    def _fields(self) -> list[tuple[str, object]]:
        return [(each.name, getattr(self, each.name)) for each in fields(self)]

    def lying_in(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same rays with their tensors elsewhere, by name; rows beyond theirs may follow there."""
        columns: dict[str, Any] = dict(tensors)
        return replace(self, **columns)

    def inputs(
        self, norm: Tensor, image: Tensor, map: Tensor, irrelevance: Tensor, epsilon: Tensor, level: Tensor
    ) -> Tensor:
        """The model's inputs for M probes on these rays' images and maps, (M, C, H, W); all arguments are (M,)."""
        probes = norm, image, map, irrelevance, epsilon, level
        lower, upper = (None if isinstance(bound, Tensor) else bound for bound in (self.lower, self.upper))
        inputs = ops.perturb_probes(self.images, self.relevance, self.sign, *probes, lower, upper)
        # Bounds for each channel, which the operator does not know, go on top.
        if isinstance(self.lower, Tensor):
            inputs = torch.maximum(inputs, self.lower)
        return torch.minimum(inputs, self.upper) if isinstance(self.upper, Tensor) else inputs

    def on_segments(
        self, norm: Tensor, image: Tensor, map: Tensor, irrelevance: Tensor, first: Tensor, last: Tensor
    ) -> OnSegments:
        """The model's inputs on M segments from epsilon `first` to `last`, in float64; all arguments are (M,).

        Their error covers the rounding of the points of a segment when these are computed in the images' type. The rays
        must have no filter level.
        """
        dtype = self.images.dtype

        def each(t: Tensor) -> Tensor:
            return t[:, None, None, None]

        value = self.relevance[map].to(dtype)
        value = torch.where(each(irrelevance), 1 - value, value)
        direction = (value / each(norm.to(dtype)) * self.sign[image].to(dtype)).double()
        images, middle, half = self.images[image].double(), (first + last) / 2, (last - first) / 2
        farthest = each(last) * direction.abs()
        # The last sum is rounded once; epsilon, the quotient and their product count as five roundings, to be safe.
        rounded = torch.finfo(dtype).eps / 2 * (1 + 1e-6) * (images.abs() + 6 * farthest)
        error = rounded + 8 * UNIT * (images.abs() + farthest) + torch.finfo(dtype).tiny
        inputs = OnSegments(images + each(middle) * direction, each(half) * direction, error)
        lower, upper = (None if bound is None else self._bound_of(bound) for bound in (self.lower, self.upper))
        if lower is not None:
            inputs = torch.maximum(inputs, lower)  # type: ignore[assignment]
        return inputs if upper is None else torch.minimum(inputs, upper)  # type: ignore[return-value]

    def _bound_of(self, bound: float | Tensor) -> Tensor:
        """A bound of perturbed images, rounded to their type, as float64."""
        return torch.as_tensor(bound, dtype=self.images.dtype, device=self.images.device).double()


def relevance_norms(relevance: Tensor, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The l1 norms (maps,) of relevance and irrelevance, applied to `channels` channels."""
    repeats = channels // relevance.shape[1]
    total = relevance.sum(dim=(1, 2, 3), dtype=torch.float64) * repeats
    # 1 - R is rounded before it is summed, as in the kernels.
    inverse = (1 - relevance.to(torch.float64 if relevance.dtype == torch.float64 else torch.float32)).sum(
        dim=(1, 2, 3), dtype=torch.float64
    ) * repeats
    return total.cpu().numpy(), inverse.cpu().numpy()


def relevance_rays(images: Tensor, clean: Clean, relevance: Tensor, image_of_map: NDArray[np.int64]) -> Rays:
    """Two rays for each map m: ray 2m along its relevance, ray 2m + 1 along its irrelevance."""
    maps, channels = len(relevance), images.shape[1]
    plus, minus = relevance_norms(relevance, channels)
    norm = np.stack([plus, minus], axis=1).reshape(-1)
    image = np.repeat(np.asarray(image_of_map, np.int64), 2)
    along, total = [], []
    # A few maps at a time: (maps, C, H, W) of products would be as large as the maps.
    few = max(1, PRODUCTS_AT_ONCE.get(images.device.type, PRODUCTS_AT_ONCE["cpu"]) // images[0].numel())
    rows = torch.from_numpy(np.asarray(image_of_map, np.int64)).to(images.device)
    for some, row in zip(relevance.split(few), rows.split(few)):
        g = clean.loss_gradient[row].abs()
        along.append((some * g).sum(dim=(1, 2, 3), dtype=torch.float64))
        total.append(g.sum(dim=(1, 2, 3), dtype=torch.float64))
    fall = torch.cat(along).cpu().numpy()
    whole = torch.cat(total).cpu().numpy()
    return Rays(
        images,
        clean.labels,
        clean.sign,
        relevance,
        image,
        map=np.repeat(np.arange(maps), 2),
        irrelevance=np.tile([False, True], maps),
        norm=norm,
        level=np.zeros(2 * maps),
        margin=clean.margin[image],
        slope=np.stack([fall, whole - fall], axis=1).reshape(-1) / norm,
        above=clean.above,
    )


def direction_rays(images: Tensor, clean: Clean, direction: Tensor) -> Rays:
    """One ray for each image along any direction: the map is its absolute value, and the norm is 1."""
    rays = len(images)
    return Rays(
        images,
        clean.labels,
        direction.sign().to(torch.int8),
        direction.abs(),
        image=np.arange(rays),
        map=np.arange(rays),
        irrelevance=np.zeros(rays, bool),
        norm=np.ones(rays),
        level=np.zeros(rays),
        margin=clean.margin,
        slope=np.zeros(rays),
        above=clean.above,
    )
