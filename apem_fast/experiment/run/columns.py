"""Measures of an explanation other than APEM: an optional column each of a run's results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from apem_fast.explain import Explainer
from apem_fast.measures import continuity, selectivity
from apem_fast.relevance import Stage


@dataclass(frozen=True)
class Explained:
    """A block of images, and one explainer's maps of them at one stage.

    A map that leaves no ray is replaced by one half throughout; its value does not reach the results.
    """

    model: nn.Module
    images: Tensor  # (N, C, H, W), as the model receives them
    pixels_of: Callable[[Tensor], Tensor]  # of such images, in [0, 1] but for roundings
    labels: Tensor  # (N,) int64: the predictions
    explainer: Explainer
    stage: Stage
    percentile: float | None
    relevance: Tensor  # (N, 1 or C, H, W) in [0, 1]


@dataclass(frozen=True)
class Measure:
    """A measure, and what its column means."""

    meaning: str
    of: Callable[[Explained], Tensor]  # one value an image, (N,)


def _selectivity(explained: Explained) -> Tensor:
    """The area under the curve of P2 Algorithm 1, features taken away in 100 parts."""
    return selectivity(explained.model, explained.images, explained.relevance, labels=explained.labels).area


def _continuity(explained: Explained) -> Tensor:
    """The most a map changes around an image, for the distance (P2 section 2.3.1), over three neighbours. At the stage
    that multiplies by the image, each map is multiplied by the pixels of its own image or neighbour."""

    def relevance(attribution: Tensor, pixels: Tensor) -> Tensor:
        return explained.stage(attribution, pixels, explained.percentile)

    return continuity(
        explained.model,
        explained.images,
        explained.explainer,
        labels=explained.labels,
        neighbours=NEIGHBOURS,
        relevance=relevance,
        pixels=explained.pixels_of,
    ).continuity


NEIGHBOURS = 3

MEASURES = {
    "selectivity": Measure("area under the output as relevant features go (P2 Algorithm 1); low is good", _selectivity),
    "continuity": Measure(
        "the most a map changes around its image, for the distance (P2 section 2.3.1); low is good", _continuity
    ),
}
"""By name, which is also the column's."""
