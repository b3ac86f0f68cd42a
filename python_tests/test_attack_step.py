"""attack_step: equation 26 with region, bounds and the proximal zero force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from backends import Backend, every_backend, native_backend
from tensors import SHAPES, every_dtype, every_layout, normal, same, shares_memory

from apem_fast import ops
from apem_fast.ops import reference


@every_backend
@pytest.mark.parametrize("zero", [0.0, 0.05])
@pytest.mark.parametrize("bounds", [(None, None), (-0.5, None), (-0.5, 0.5)])
def test_equation_26_literally(backend: Backend, bounds, zero: float, generator: torch.Generator) -> None:
    value, gradient, previous, original = (
        torch.randn((2, 3, 4, 5), generator=generator, dtype=torch.float64) for _ in range(4)
    )
    region = torch.rand((2, 1, 4, 5), generator=generator) < 0.6
    actual = backend.run("attack_step", value, gradient, previous, region, 0.3, 0.8, *bounds, original, zero)
    for n, i, j in itertools.product(range(2), range(4), range(5)):
        moved = []
        for c in range(3):
            v = float(value[n, c, i, j]) - (0.3 * float(gradient[n, c, i, j]) + 0.8 * float(previous[n, c, i, j]))
            v = v if bounds[0] is None else max(v, bounds[0])
            moved.append(v if bounds[1] is None else min(v, bounds[1]))
        start = [float(original[n, c, i, j]) for c in range(3)]
        if zero and sum((m - s) ** 2 for m, s in zip(moved, start, strict=True)) <= 2 * 0.3 * zero:
            moved = start
        if not region[n, 0, i, j]:
            moved = [float(value[n, c, i, j]) for c in range(3)]
        assert actual[n, :, i, j].tolist() == pytest.approx(moved, abs=1e-14)


@every_backend
def test_the_zero_force_is_a_proximal_operator(backend: Backend, generator: torch.Generator) -> None:
    """No other perturbation of a pixel is cheaper: |e - v|^2 / 2 + step_size * zero * [e != 0] (e = 0 or e = v)."""
    original, gradient = (torch.randn((1, 3, 8, 8), generator=generator, dtype=torch.float64) for _ in range(2))
    for zero in (0.01, 0.3, 1.0):
        moved = backend.run("attack_step", original, gradient, None, None, 0.5, 0.0, None, None, original, zero)
        wanted = (-0.5 * gradient).square().sum(dim=1)
        kept = (moved != original).any(dim=1)
        assert torch.equal(kept, wanted / 2 > 0.5 * zero)
        assert torch.equal(moved[:, :, kept[0]], (original - 0.5 * gradient)[:, :, kept[0]])


@native_backend
@every_dtype
@every_layout
def test_equals_the_reference(backend: Backend, dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    for shape in (*SHAPES, (1, 3, 60, 61)):
        value, gradient, previous, original = (normal(shape, dtype, layout, generator) for _ in range(4))
        masks = [
            torch.rand((n, c, *shape[2:]), generator=generator) < 0.5 for n in {1, shape[0]} for c in {1, shape[1]}
        ]
        masks = [mask for mask in masks if len(mask) in (1, shape[0])]
        for k, (region, damped, zero) in enumerate(itertools.product([None, *masks], (False, True), (0.0, 0.3))):
            bounds = ((None, None), (-0.25, 0.5), (None, 0.0))[k % 3]
            arguments = value, gradient, previous if damped else None, region, 0.4, 0.7, *bounds, original, zero
            actual = backend.run("attack_step", *arguments)
            same(actual, reference.attack_step(*arguments))
            assert not any(shares_memory(actual, t) for t in (value, gradient, previous, original))


@every_backend
def test_outside_the_region_nothing_changes_not_even_what_is_missing_or_out_of_bounds(backend: Backend) -> None:
    value = torch.tensor([[[[5.0, math.nan, 0.2]]]])
    region = torch.tensor([[[[False, False, True]]]])
    moved = backend.run("attack_step", value, torch.full_like(value, 2.0), None, region, 1.0, 0.0, 0.0, 1.0)
    torch.testing.assert_close(moved, torch.tensor([[[[5.0, math.nan, 0.0]]]]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_and_compile(channels_last: bool, generator: torch.Generator) -> None:
    layout = "channels_last" if channels_last else "contiguous"
    value, gradient = (normal((2, 3, 6, 5), torch.float32, layout, generator) for _ in range(2))
    arguments = value, gradient, gradient, value[:, :1] > 0, 0.1, 0.2, -1.0, 1.0, gradient, 0.01
    torch.library.opcheck(torch.ops.apem_fast.attack_step.default, arguments)
    compiled = torch.compile(lambda *a: ops.attack_step(*a) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), ops.attack_step(*arguments) * 2)
    with pytest.raises(NotImplementedError, match="attack_step: has no derivative"):
        ops.attack_step(value.requires_grad_(), gradient, None, None, 0.1, 0.0).sum().backward()


T = torch.zeros
X = (2, 3, 4, 4)
BAD = [
    (lambda: (T(3, 4, 4), T(3, 4, 4), None, None, 0.1, 0.0), "perturbed must have shape (N, C, H, W) (got (3, 4, 4))"),
    (lambda: (T(X), T(1, 3, 4, 4), None, None, 0.1, 0.0), "gradient must have shape (2, 3, 4, 4) (got (1, 3, 4, 4))"),
    (lambda: (T(X), T(X), T(X).double(), None, 0.1, 0.0), "previous must be float32 (got float64)"),
    (
        lambda: (T(X), T(X), None, T(2, 2, 4, 4).bool(), 0.1, 0.0),
        "region must match perturbed (2, 3, 4, 4) in all but the channels, which may be 1 (got (2, 2, 4, 4))",
    ),
    (
        lambda: (T(4, 3, 4, 4), T(4, 3, 4, 4), None, T(2, 1, 4, 4).bool(), 0.1, 0.0),
        "region must hold 1 mask or 4, one for each image (got 2)",
    ),
    (lambda: (T(X), T(X), None, T(2, 1, 4, 4), 0.1, 0.0), "region must be bool (got float32)"),
    (lambda: (T(X), T(X), None, None, 0.1, 0.0, 2.0, 1.0), "lower must be at most upper=1 (got 2)"),
    (lambda: (T(X), T(X), None, None, 0.1, 0.0, None, None, T(X), -1.0), "zero must be at least 0 (got -1)"),
    (
        lambda: (T(X), T(X), None, None, 0.1, 0.0, None, None, None, 1.0),
        "original must be given where zero is not 0 (got None)",
    ),
]


@every_backend
@pytest.mark.parametrize("arguments, message", BAD)
def test_a_bad_call_gets_one_sentence(backend: Backend, arguments, message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        backend.run("attack_step", *arguments())
    assert str(error.value) == f"attack_step: {message}"
