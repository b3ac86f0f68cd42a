"""zero_levels: a map at many levels of the filter, and what it weighs there."""

from __future__ import annotations

import math

import pytest
import torch
from backends import Backend, every_backend
from tensors import SHAPES, dyadic, every_dtype, every_layout, moved, same

from apem_fast.ops import reference


@every_backend
def test_one_level_at_a_time(backend: Backend, generator: torch.Generator) -> None:
    relevance = torch.rand((3, 2, 5, 7), generator=generator)
    threshold = torch.tensor([0.0, 0.25, float(relevance[1, 0, 2, 3]), 0.9, 1.0])
    zeroed, norms = backend.zero_levels(moved(relevance, backend.device), moved(threshold, backend.device))
    assert zeroed.shape == (3, 5, 2, 5, 7) and norms.shape == (3, 5, 2) and norms.dtype == torch.float64
    for n in range(3):
        for t, end in enumerate(threshold):
            expected = relevance[n].clone()
            expected[expected <= end] = 0
            assert torch.equal(zeroed[n, t].cpu(), expected)
            for values, norm in ((expected, norms[n, t, 0]), (1 - expected, norms[n, t, 1])):
                assert float(norm) == pytest.approx(math.fsum(values.flatten().tolist()), rel=1e-14)


@every_backend
@every_dtype
@every_layout
def test_equals_the_reference(backend: Backend, dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    for shape in (*SHAPES, (2, 3, 60, 61)):
        relevance = dyadic(shape, dtype, layout, generator)
        for size in ((4,), (shape[0], 3)):
            threshold = (torch.randint(-9, 140, size, generator=generator) / 128).double()
            actual = backend.zero_levels(moved(relevance, backend.device), moved(threshold, backend.device))
            for a, b in zip(actual, reference.zero_levels(relevance, threshold)):
                same(a, b)


@every_backend
def test_no_level_and_no_threshold(backend: Backend) -> None:
    relevance = moved(torch.tensor([0.0, 0.5, math.nan]).view(1, 1, 1, 3), backend.device)
    zeroed, norms = backend.zero_levels(relevance, moved(torch.tensor([math.nan, -1.0]), backend.device))
    torch.testing.assert_close(zeroed[0].cpu(), relevance.cpu().expand(2, 1, 1, 3), equal_nan=True)
    assert norms.isnan().all()
    none = backend.zero_levels(relevance, moved(torch.zeros(0), backend.device))
    assert none[0].shape == (1, 0, 1, 1, 3) and none[1].shape == (1, 0, 2)
