"""Operations with a bend, such as a ReLU: if the bend is within a value's range, the result lies between two lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apem_fast.running.segments.products import negative, pair
from apem_fast.running.segments.values import RULES, TINY, OnSegments, is_constant, refused, widened


def _at_least(v: OnSegments, floor: Any, leak: float = 0.0) -> OnSegments:
    """max(v, floor), or floor + leak * (v - floor) below it: between two lines where the bend lies within reach.

    From above the chord over [low, high] bounds it, from below the parallel of that through the bend.
    """
    if not 0 <= leak < 1:
        raise refused("a leaky ReLU with a negative slope outside [0, 1)")
    reach = v.reach
    low, high = v.offset - reach - floor, v.offset + reach - floor
    crosses = (low < 0) & (high > 0)
    # A point's share is that of its side: where low and high are one and the same, they do not cross.
    share = torch.where(low >= 0, 1.0, torch.where(high <= 0, leak, (high - leak * low) / (high - low).clamp_min(TINY)))
    rise = torch.where(crosses, low * (leak - share), 0.0)
    size = v.greatest + abs(floor) + rise
    offset = v.offset * share + (1 - share) * floor + rise / 2
    return widened(offset, v.slope * share, v.error * share + rise / 2, 8, size)


def _at_most(v: OnSegments, ceiling: Any) -> OnSegments:
    return negative(_at_least(negative(v), -ceiling))


def _clamped(v: OnSegments, lower: Any = None, upper: Any = None) -> OnSegments:
    v = v if lower is None else _at_least(v, lower)
    return v if upper is None else _at_most(v, upper)


def _maximum(a: Any, b: Any) -> OnSegments:
    if not is_constant(a) and not is_constant(b):
        raise refused("a maximum of two values that vary")
    return _at_least(b, a) if is_constant(a) else _at_least(a, b)


def _minimum(a: Any, b: Any) -> OnSegments:
    if not is_constant(a) and not is_constant(b):
        raise refused("a minimum of two values that vary")
    return _at_most(b, a) if is_constant(a) else _at_most(a, b)


def _max_pool(
    v: OnSegments,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[OnSegments, Tensor]:
    """One of each window's values, and by how much another one may be above it."""
    (high, wide), (down, along) = pair(kernel), pair(stride or kernel)
    (top, left), spread = pair(padding), pair(dilation)
    if ceil_mode or spread != (1, 1) or v.dim() != 4:
        raise refused("a max pooling with dilation or ceil_mode")

    def windows(t: Tensor, outside: float) -> Tensor:
        t = nn.functional.pad(t, (left, left, top, top), value=outside)
        return t.unfold(2, high, down).unfold(3, wide, along).flatten(4)

    offset, slope, error = windows(v.offset, -math.inf), windows(v.slope, 0.0), windows(v.error, 0.0)
    best = offset.argmax(dim=-1, keepdim=True)
    its_offset, its_slope, its_error = (t.gather(-1, best) for t in (offset, slope, error))
    above = offset - its_offset + (slope - its_slope).abs() + error + its_error
    above = above.scatter(-1, best, 0.0).amax(dim=-1).clamp_min(0)
    size = windows(v.greatest, 0.0).amax(dim=-1)
    made = widened(its_offset[..., 0] + above / 2, its_slope[..., 0], its_error[..., 0] + above / 2, 8, size)
    return made, torch.empty(0, dtype=torch.int64)


RULES.update(
    {
        "relu": lambda v: _at_least(v, 0.0),
        "leaky_relu": lambda v, leak=0.01: _at_least(v, 0.0, leak),
        "hardtanh": lambda v, lower=-1.0, upper=1.0: _clamped(v, lower, upper),
        "clamp": _clamped,
        "clamp_min": _at_least,
        "clamp_max": _at_most,
        "maximum": _maximum,
        "minimum": _minimum,
        "max_pool2d_with_indices": _max_pool,
    }
)
