"""perturb and its derivative: x' = x + epsilon * direction for K epsilons at once."""

from __future__ import annotations

import pytest
import torch
from backends import Backend, every_backend, every_device, native_backend
from tensors import DTYPES, SHAPES, every_dtype, every_layout, moved, normal, same, shares_memory

from apem_fast.ops import reference

BOUNDS = ((None, None), (-0.5, None), (None, 0.25), (-0.5, 0.5))


@every_backend
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("own_epsilons", [False, True])
def test_against_a_literal_loop(
    backend: Backend, bounds: tuple[float | None, float | None], own_epsilons: bool, generator: torch.Generator
) -> None:
    images, direction = (torch.randn((2, 3, 2, 3), generator=generator, dtype=torch.float64) for _ in range(2))
    epsilon = torch.rand((2, 4) if own_epsilons else (4,), generator=generator, dtype=torch.float64)
    actual = backend.perturb(*(moved(t, backend.device) for t in (images, direction, epsilon)), *bounds)
    assert actual.shape == (2, 4, 3, 2, 3)
    lower, upper = bounds
    for n in range(2):
        for k in range(4):
            step = (epsilon[n, k] if own_epsilons else epsilon[k]).item()
            for x, d, result in zip(images[n].flatten(), direction[n].flatten(), actual[n, k].flatten()):
                expected = x.item() + step * d.item()
                expected = expected if lower is None else max(expected, lower)
                assert result.item() == (expected if upper is None else min(expected, upper))


@native_backend
@every_dtype
@every_layout
def test_equals_the_reference(backend: Backend, dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    for i, shape in enumerate(SHAPES):
        for k in (0, 1, 3):
            images, direction = (normal(shape, dtype, layout, generator) for _ in range(2))
            epsilon = torch.rand((shape[0], k) if k == 3 else (k,), generator=generator).to(DTYPES[i % 4])
            bounds = BOUNDS[(i + k) % 4]
            arguments = [moved(t, backend.device) for t in (images, direction, epsilon)]
            actual = backend.perturb(*arguments, *bounds)
            same(actual, reference.perturb(images, direction, epsilon, *bounds))
            assert not any(shares_memory(actual, argument) for argument in arguments)


@native_backend
@every_dtype
@every_layout
def test_derivative_equals_the_reference(
    backend: Backend, dtype: torch.dtype, layout: str, generator: torch.Generator
) -> None:
    for i, shape in enumerate(SHAPES):
        for k in (0, 1, 3):
            images, direction = (normal(shape, dtype, layout, generator) for _ in range(2))
            epsilon = torch.rand((k,), generator=generator)
            grad = torch.randn((shape[0], k, *shape[1:]), generator=generator).to(dtype)
            bounds = BOUNDS[(i + k) % 4]
            expected = reference.perturb_backward(grad, images, direction, epsilon, *bounds)
            on_device = (moved(t, backend.device) for t in (grad, images, direction, epsilon))
            for actual, wanted in zip(backend.perturb_backward(*on_device, *bounds), expected):
                same(actual, wanted)


@every_backend
def test_missing_values_stay_missing_within_bounds(backend: Backend) -> None:
    images = torch.tensor([float("nan"), 2.0, -2.0], device=backend.device).reshape(1, 1, 1, 3)
    perturbed = backend.perturb(images, torch.zeros_like(images), torch.ones(1, device=backend.device), -1.0, 1.0)
    assert perturbed.flatten()[0].isnan()
    assert perturbed.flatten()[1:].tolist() == [1.0, -1.0]


@every_device
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_gradcheck(device: str, bounds: tuple[float | None, float | None], generator: torch.Generator) -> None:
    images, direction = (
        torch.randn((2, 2, 3, 2), generator=generator, dtype=torch.float64).to(device).requires_grad_()
        for _ in range(2)
    )
    epsilon = torch.tensor([0.5, 2.0], dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(
        lambda x, d: torch.ops.apem_fast.perturb(x, d, epsilon, *bounds), (images, direction)
    )


@every_device
def test_epsilon_has_no_derivative(device: str) -> None:
    images = torch.zeros(1, 1, 1, 1, device=device)
    with pytest.raises(NotImplementedError, match="perturb: epsilon has no derivative"):
        torch.ops.apem_fast.perturb(images, images, torch.ones(1, device=device, requires_grad=True))
