"""Inputs for the operator tests: every dtype, shape and layout in memory, and what it means to be the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "transposed", "every second column")
# One element; nothing; one channel; five; sizes that no vector and no tile divides; more than one tile.
SHAPES = ((1, 1, 1, 1), (0, 3, 4, 4), (2, 3, 0, 4), (2, 1, 5, 7), (2, 5, 3, 9), (1, 3, 8, 16), (2, 3, 41, 37))
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """`values` (N, C, H, W) in another order of memory."""
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return values.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "every second column":
        wide = values.new_zeros((*values.shape[:3], 2 * values.shape[3]))
        wide[..., ::2] = values
        return wide[..., ::2]
    return values.contiguous()


def normal(shape: tuple[int, ...], dtype: torch.dtype, layout: str, generator: torch.Generator) -> Tensor:
    """Signed values; about one in ten is 0."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return laid_out((values * (torch.rand(shape, generator=generator) > 0.1)).to(dtype), layout)


def dyadic(shape: tuple[int, ...], dtype: torch.dtype, layout: str, generator: torch.Generator) -> Tensor:
    """Relevance in [0, 1] in steps of 1/128: any order of summation gives the same norm, so results are exact."""
    return laid_out((torch.randint(0, 129, shape, generator=generator) / 128).to(dtype), layout)


def moved(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def same(actual: Tensor, expected: Tensor, *, tolerance: float = 0.0) -> None:
    """Equal in dtype, shape, order of memory and every value; NaN equals NaN."""
    assert actual.dtype == expected.dtype
    assert actual.stride() == expected.stride()
    torch.testing.assert_close(actual.to(expected.device), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() > 0
