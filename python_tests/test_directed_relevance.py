"""directed_relevance and its derivative: R / norm1(R) * sign(gradient)."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from backends import Backend, every_backend, every_device, native_backend
from hypothesis import given
from tensors import SHAPES, TOLERANCE, dyadic, every_dtype, every_layout, moved, normal, same, shares_memory

from apem_fast.ops import reference

polarity = pytest.mark.parametrize("irrelevance", [False, True], ids=["relevance", "irrelevance"])


@every_backend
@polarity
@pytest.mark.parametrize("map_channels", [1, 3])
def test_against_a_literal_loop(
    backend: Backend, irrelevance: bool, map_channels: int, generator: torch.Generator
) -> None:
    relevance = torch.rand((2, map_channels, 3, 4), generator=generator, dtype=torch.float64)
    gradient = normal((2, 3, 3, 4), torch.float64, "contiguous", generator)
    actual = backend.directed_relevance(moved(relevance, backend.device), moved(gradient, backend.device), irrelevance)
    for n in range(2):
        applied = {}
        for c in range(3):
            for y in range(3):
                for x in range(4):
                    r = relevance[n, c if map_channels == 3 else 0, y, x].item()
                    applied[c, y, x] = 1 - r if irrelevance else r
        norm = math.fsum(applied.values())
        for (c, y, x), value in applied.items():
            g = gradient[n, c, y, x].item()
            expected = 0.0 if g == 0 else math.copysign(value / norm, g)
            assert actual[n, c, y, x].item() == pytest.approx(expected, rel=1e-14, abs=1e-300)


@native_backend
@every_dtype
@every_layout
@polarity
def test_equals_the_reference(
    backend: Backend, dtype: torch.dtype, layout: str, irrelevance: bool, generator: torch.Generator
) -> None:
    for shape in SHAPES:
        for map_channels in {1, shape[1]}:
            relevance = dyadic((shape[0], map_channels, *shape[2:]), dtype, layout, generator)
            gradient = normal(shape, dtype, layout, generator)
            for g in (gradient, gradient.sign().to(torch.int8)):
                expected = reference.directed_relevance(relevance, g, irrelevance)
                arguments = moved(relevance, backend.device), moved(g, backend.device)
                actual = backend.directed_relevance(*arguments, irrelevance)
                same(actual, expected)
                assert not any(shares_memory(actual, argument) for argument in arguments)


@native_backend
@every_dtype
@every_layout
@polarity
def test_derivative_equals_the_reference(
    backend: Backend, dtype: torch.dtype, layout: str, irrelevance: bool, generator: torch.Generator
) -> None:
    for shape in SHAPES:
        for map_channels in {1, shape[1]}:
            relevance = dyadic((shape[0], map_channels, *shape[2:]), dtype, layout, generator)
            gradient, grad = (normal(shape, dtype, layout, generator) for _ in range(2))
            expected = reference.directed_relevance_backward(grad, relevance, gradient, irrelevance)
            on_device = (moved(t, backend.device) for t in (grad, relevance, gradient))
            same(backend.directed_relevance_backward(*on_device, irrelevance), expected, tolerance=TOLERANCE[dtype])


@every_backend
@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000), irrelevance=st.booleans())
def test_the_perturbation_has_norm_epsilon(backend: Backend, scale: float, seed: int, irrelevance: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    relevance = torch.rand((2, 1, 7, 5), generator=g, dtype=torch.float64)
    gradient = torch.rand((2, 3, 7, 5), generator=g, dtype=torch.float64) - 0.5  # never exactly 0
    direction = backend.directed_relevance(
        moved(relevance, backend.device), moved(gradient, backend.device), irrelevance
    )
    applied = backend.perturb(
        torch.zeros_like(direction), direction, torch.tensor([scale], dtype=torch.float64, device=backend.device)
    )
    norms = applied.abs().sum(dim=(1, 2, 3, 4)).cpu()
    torch.testing.assert_close(norms, torch.full((2,), scale, dtype=torch.float64), rtol=1e-12, atol=0.0)


@every_backend
@given(power=st.integers(-8, 8), seed=st.integers(0, 1000))
def test_the_scale_of_the_map_does_not_matter(backend: Backend, power: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    relevance = torch.rand((2, 3, 4, 5), generator=g).to(backend.device)
    gradient = torch.randn((2, 3, 4, 5), generator=g).to(backend.device)
    scaled = backend.directed_relevance(relevance * 2.0**power, gradient)
    assert torch.equal(scaled, backend.directed_relevance(relevance, gradient))


@every_backend
def test_a_map_of_zeros_has_no_direction(backend: Backend) -> None:
    relevance = torch.zeros(1, 1, 2, 2, device=backend.device)
    gradient = torch.ones(1, 3, 2, 2, device=backend.device)
    assert backend.directed_relevance(relevance, gradient).isnan().all()


@every_backend
def test_a_missing_gradient_counts_as_zero(backend: Backend) -> None:
    relevance = torch.ones(1, 1, 1, 2, device=backend.device)
    gradient = torch.tensor([float("nan"), -3.0], device=backend.device).reshape(1, 1, 1, 2)
    assert backend.directed_relevance(relevance, gradient).flatten().tolist() == [0.0, -0.5]


@every_device
@polarity
@pytest.mark.parametrize("map_channels", [1, 3])
def test_gradcheck(device: str, irrelevance: bool, map_channels: int, generator: torch.Generator) -> None:
    relevance = torch.rand((2, map_channels, 3, 2), generator=generator, dtype=torch.float64) * 0.8 + 0.1
    gradient = torch.randn((2, 3, 3, 2), generator=generator, dtype=torch.float64).to(device)
    relevance = relevance.to(device).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r: torch.ops.apem_fast.directed_relevance(r, gradient, irrelevance), (relevance,)
    )
