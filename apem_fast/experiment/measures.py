"""Measures of an explanation other than APEM: an optional column each of a run's results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from apem_fast.explain import Explainer
from apem_fast.relevance import Stage


@dataclass(frozen=True)
class Explained:
    """A block of images, and one explainer's maps of them at one stage.

    A map that leaves no ray is replaced by one half throughout; its value does not reach the results.
    """

    model: nn.Module
    images: Tensor  # (N, C, H, W), as the model receives them
    pixels: Tensor  # (N, C, H, W) in [0, 1]
    labels: Tensor  # (N,) int64: the predictions
    explainer: Explainer
    stage: Stage
    percentile: float | None
    relevance: Tensor  # (N, 1 or C, H, W) in [0, 1]


Measure = Callable[[Explained], Tensor]
"""One value an image, (N,)."""

MEASURES: dict[str, Measure] = {}
"""By name, which is also the column's."""
