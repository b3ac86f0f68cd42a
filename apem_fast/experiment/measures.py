"""Measures of a relevance map other than APEM: an optional column each of a run's results."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Measure = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""(model, images (N, C, H, W), relevance (N, 1 or C, H, W) in [0, 1], labels (N,)) -> one value an image, (N,)."""

MEASURES: dict[str, Measure] = {}
"""By name; the name is the column's."""
