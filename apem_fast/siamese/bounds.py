"""Bounds on an attacked image, the same for all channels or one for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apem_fast.siamese.results import Bounds
from apem_fast.validation import plain

__all__ = ["check_bounds", "normalised_bounds", "within"]

Limit = float | Sequence[float] | Tensor


def normalised_bounds(mean: Sequence[float], std: Sequence[float]) -> Bounds:
    """The bounds of pixels in [0, 1] for a network that takes (pixels - mean) / std, channel by channel."""
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise ValueError(f"normalised_bounds: std must be greater than 0 and as many as mean (got {mean}, {std})")
    lower = tuple((0 - m) / s for m, s in zip(mean, std, strict=True))
    return lower, tuple((1 - m) / s for m, s in zip(mean, std, strict=True))


def check_bounds(call: str, bounds: tuple[Limit, Limit] | None, images: Tensor) -> Bounds | None:
    """The bounds as numbers or tuples of numbers. Raises if images (N, C, H, W) or embeddings (N, size) exceed them."""
    if bounds is None:
        return None
    if len(bounds) != 2:
        raise ValueError(f"{call}: bounds must be (lower, upper) (got {bounds!r})")
    lower, upper = (_numbers(limit) for limit in bounds)
    channels = images.shape[1] if images.dim() == 4 else 1
    for limit in (lower, upper):
        if isinstance(limit, tuple) and len(limit) != channels:
            raise ValueError(f"{call}: bounds must be numbers, or {channels} numbers each (got {bounds!r})")
    low, high = (_wide(limit, images) for limit in (lower, upper))
    if not bool((low < high).all()):
        raise ValueError(f"{call}: bounds must be (lower, upper) (got {bounds!r})")
    # Rounding may carry images that were normalised in float32 beyond the bounds of their pixels.
    slack = 1e-5 * (high - low)
    if images.dim() == 4 and bool(((images < low - slack) | (images > high + slack)).any()):
        raise ValueError(
            f"{call}: first must lie in bounds={bounds} (got min={float(images.min()):g}, max={float(images.max()):g})"
        )
    return lower, upper


def within(bounds: Bounds | None, images: Tensor) -> Tensor:
    """The images clamped to their bounds."""
    if bounds is None:
        return images
    lower, upper = (_wide(limit, images) for limit in bounds)
    return torch.minimum(torch.maximum(images, lower), upper)


def held(bounds: Bounds | None, images: Tensor, gradient: Tensor) -> Tensor | None:
    """The values at a bound that a step against the gradient would leave at once; None without bounds."""
    if bounds is None:
        return None
    lower, upper = (_wide(limit, images) for limit in bounds)
    return ((images <= lower) & (gradient > 0)) | ((images >= upper) & (gradient < 0))


def _numbers(limit: Limit) -> float | tuple[float, ...]:
    values = limit.tolist() if isinstance(limit, Tensor) else plain(limit)
    if isinstance(values, (int, float)):
        return float(values)
    return tuple(float(value) for value in values)


def _wide(limit: float | tuple[float, ...], images: Tensor) -> Tensor:
    value = torch.as_tensor(limit, dtype=images.dtype, device=images.device)
    return value if value.dim() == 0 else value[:, None, None]
