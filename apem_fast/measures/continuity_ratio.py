"""Explanation continuity: how much an explanation changes if the image hardly does (P2 section 2.3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.measures.arguments import (
    Explain,
    check_classes,
    check_model_and_images,
    explainer_of,
)
from apem_fast.progress import shown
from apem_fast.relevance import relevance_map
from apem_fast.results import TableResult, counted
from apem_fast.results.plots import draw_values
from apem_fast.running.clean import predictions_of
from apem_fast.running.undisturbed import undisturbed
from apem_fast.seeding import generators_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class ContinuityResult(TableResult):
    """How the explanations of N images differ from those of K neighbours each (tensors are on the CPU)."""

    change: Tensor  # (N, K) float64: norm1(R(x) - R(x'))
    distance: Tensor  # (N, K) float64: norm2(x - x')
    labels: Tensor  # (N,) int64: the classes that were explained, for the image and its neighbours

    @property
    def ratio(self) -> Tensor:
        """The ratios norm1(R(x) - R(x')) / norm2(x - x'): (N, K) float64."""
        return self.change / self.distance

    @property
    def continuity(self) -> Tensor:
        """The greatest ratio over the neighbours: (N,) float64; low is continuous."""
        return self.ratio.amax(dim=1)

    @property
    def maximum(self) -> float:
        """The greatest ratio of all, which is the best lower bound on the maximum over the input domain."""
        return float(self.continuity.max())

    @property
    def mean(self) -> float:
        """The mean over the images of their greatest ratio."""
        return float(self.continuity.mean())

    @property
    def median(self) -> float:
        """The median over the images, the mean of the middle two for an even number of images."""
        return float(np.median(self.continuity.numpy()))

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Label, continuity, and the mean ratio over its neighbours."""
        return {"label": self.labels, "continuity": self.continuity, "mean_ratio": self.ratio.mean(dim=1)}

    def _said(self) -> list[str]:
        sizes = counted(len(self.labels), "image"), counted(self.change.shape[1], "neighbour")
        return [*sizes, f"greatest ratio {self.maximum:.4g}", f"mean {self.mean:.4g}", f"median {self.median:.4g}"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the greatest ratio of each image. Without `ax`, into new axes."""
        exact = torch.ones(len(self.labels), dtype=torch.bool, device="cpu")
        what = "greatest change of the map per change of the image"
        return draw_values(ax, self.continuity, exact, xlabel=what, label="continuity")


@said_by("continuity")
def continuity(
    model: nn.Module,
    images: Tensor,
    explain: Explain,
    *,
    labels: Tensor | None = None,
    neighbours: int | Tensor = 10,
    distance: float = 0.01,
    relevance: Callable[..., Tensor] | None = relevance_map,
    pixels: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> ContinuityResult:
    """The greatest norm1(R(x) - R(x')) / norm2(x - x') over neighbours x' of each image x (P2 section 2.3.1).

    The papers' maximum is over the whole input domain; over a few neighbours it is a lower bound. Neighbours are drawn
    uniformly from the sphere around x with the radius `distance` times norm2(x), from a generator seeded with the image
    and `seed`, so that they depend neither on the batch nor on the device. R explains the same class for x and x'. Both
    norms are of the whole tensors, so do not compare ratios of maps with and without channels, or of images of
    different sizes. If a method draws random numbers, their difference between x and x' counts as a change: SmoothGrad
    with few samples is not continuous.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them; none 0 throughout, unless neighbours are
            given.
        explain: an explanation method, or a function (model, images, labels) -> attribution.
        labels: (N,) int64, the classes to explain; None takes the predictions for the images.
        neighbours: how many to draw for each image, or the neighbours themselves, (N, K, C, H, W), none equal to its
            image: translations, for example, or the next frames of a film.
        distance: see above; positive.
        relevance: makes R of an attribution (N, C, H, W); by default the papers' map in [0, 1] with one channel. None
            takes the attribution itself.
        pixels: a function (images) -> pixels in [0, 1] that maps are multiplied by. R is then
            relevance(attribution, pixels(x)) for an image and relevance(attribution, pixels(x')) for its neighbour.
        seed: of the neighbours, any integer.
        progress: True for a line on standard error, or a function called as progress(images done, images in all).

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    progress = shown(progress)
    check_model_and_images(model, images)
    check_classes(labels, images)
    explainer = explainer_of(explain)
    distance = validation.positive("distance", distance)
    given = _checked_neighbours(neighbours, images)
    if relevance is not None and not callable(relevance):
        raise TypeError(sentence(f"relevance must be a function or None (got {type(relevance).__name__})"))
    if pixels is not None and (not callable(pixels) or relevance is None):
        came = "relevance=None" if callable(pixels) else type(pixels).__name__
        raise TypeError(sentence(f"pixels must be a function, beside a relevance that takes them (got {came})"))
    images = images.detach()
    with undisturbed(model, images), torch.no_grad():
        if labels is None:
            labels = predictions_of(model, images)
        change, apart = [], []
        for n, image in enumerate(images):  # a few neighbours in memory at a time
            around = _drawn(image, int(neighbours), distance, seed) if given is None else given[n]
            both = torch.cat([image[None], around])
            maps = explainer(model, both, labels[n : n + 1].to(images.device).expand(len(both)).contiguous())
            if relevance is not None:
                maps = relevance(maps) if pixels is None else relevance(maps, pixels(both))
            maps = maps.double().flatten(1)
            change.append((maps[1:] - maps[:1]).abs().sum(dim=1))
            apart.append((around.double() - image.double()).flatten(1).norm(dim=1))
            if progress is not None:
                progress(n + 1, len(images))
    return ContinuityResult(torch.stack(change).cpu(), torch.stack(apart).cpu(), labels.detach().cpu())


def _drawn(image: Tensor, count: int, distance: float, seed: int) -> Tensor:
    """Neighbours (K, C, H, W) of an image (C, H, W), at a distance of the given share of its l2 norm."""
    radius = distance * float(image.double().norm())
    generator = generators_for(image)
    drawn = []
    for k in range(count):
        step = torch.randn(image.shape, device="cpu", generator=generator(seed, k), dtype=torch.float64)
        drawn.append((image.double() + (radius / step.norm() * step).to(image.device)).to(image.dtype))
    return torch.stack(drawn)


def _checked_neighbours(neighbours: int | Tensor, images: Tensor) -> Tensor | None:
    if not isinstance(neighbours, Tensor) or neighbours.dim() == 0:
        validation.whole("neighbours", neighbours)
        still = (images == 0).flatten(1).all(dim=1)
        if bool(still.any()):
            raise ValueError(
                sentence(
                    "images must not be 0 throughout, which leaves no scale for a distance (got such a one at index "
                    f"{int(still.nonzero()[0])})"
                )
            )
        return None
    n, c, h, w = images.shape
    expected = f"({n}, K, {c}, {h}, {w})"
    if (
        neighbours.dim() != 5
        or neighbours.shape[1] == 0
        or neighbours.flatten(0, 1).shape[1:] != images.shape[1:]
        or len(neighbours) != n
    ):
        raise ValueError(sentence(f"neighbours must have shape {expected} (got {tuple(neighbours.shape)})"))
    for k in range(neighbours.shape[1]):
        validation.map_of_images("neighbours", neighbours[:, k], images)
    same = (neighbours == images[:, None]).flatten(2).all(dim=2)
    if bool(same.any()):
        n, k = same.nonzero()[0].tolist()
        raise ValueError(sentence(f"neighbours must differ from their image (got the image itself at index {n}, {k})"))
    return neighbours.detach()
