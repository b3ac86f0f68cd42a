"""attack_penalty and its backward: equations 24 and 25, their derivative, and agreement with the reference."""

from __future__ import annotations

import math

import pytest
import torch
from backends import Backend, every_backend, native_backend
from tensors import SHAPES, every_dtype, every_layout, laid_out, normal, same

from apem_fast import ops
from apem_fast.ops import reference

FORCES = [(0.3, 0.2, 0.7), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 5.0)]
# More rows than a band, and a row and a column without neighbours.
ALL_SHAPES = (*SHAPES, (2, 3, 70, 33), (2, 4, 1, 9), (3, 2, 65, 1))


def partly_changed(shape, dtype, layout, generator):
    """An image, and one that differs from it in about half of the pixels."""
    original = normal(shape, dtype, layout, generator)
    changed = torch.rand((shape[0], 1, *shape[2:]), generator=generator) < 0.5
    return laid_out(torch.where(changed, normal(shape, dtype, layout, generator), original), layout), original


@every_backend
@pytest.mark.parametrize("tv, zero, diff", FORCES)
def test_equations_24_and_25_literally(
    backend: Backend, tv: float, zero: float, diff: float, generator: torch.Generator
) -> None:
    perturbed, original = partly_changed((2, 3, 6, 5), torch.float64, "contiguous", generator)
    penalty, terms = backend.run("attack_penalty", perturbed, original, tv, zero, diff)
    for n in range(2):
        e = (perturbed[n] - original[n]).tolist()
        variation = sum(
            abs(e[c][i][j] - e[c][i + 1][j]) + abs(e[c][i][j] - e[c][i][j + 1])
            for c in range(3)
            for i in range(5)
            for j in range(4)
        )
        changed = sum(any(e[c][i][j] != 0 for c in range(3)) for i in range(6) for j in range(5))
        squared = sum(v * v for plane in e for row in plane for v in row) / 90
        assert terms[n].tolist() == pytest.approx([variation, changed, squared], rel=1e-12)
        assert float(penalty[n]) == pytest.approx(tv * variation + zero * changed + diff * squared, rel=1e-12)


@every_backend
def test_the_derivative_by_differences(backend: Backend, generator: torch.Generator) -> None:
    perturbed, original = (torch.randn((2, 2, 4, 5), generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.tensor([1.0, -0.5], dtype=torch.float64)
    gradient = backend.run("attack_penalty_backward", weight, perturbed, original, 0.3, 0.2, 0.7)
    for n, c, i, j in [(0, 0, 0, 0), (0, 1, 3, 4), (1, 0, 2, 2), (1, 1, 0, 4), (0, 0, 3, 0)]:
        step = torch.zeros_like(perturbed)
        step[n, c, i, j] = 1e-6
        up, down = (backend.run("attack_penalty", perturbed + s * step, original, 0.3, 0.2, 0.7)[0] for s in (1, -1))
        assert float(gradient[n, c, i, j]) == pytest.approx(float(((up - down) * weight).sum() / 2e-6), abs=1e-6)


@native_backend
@every_dtype
@every_layout
def test_equals_the_reference(backend: Backend, dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    for k, shape in enumerate(ALL_SHAPES):
        forces = FORCES[k % len(FORCES)]
        perturbed, original = partly_changed(shape, dtype, layout, generator)
        for actual, expected in zip(
            backend.run("attack_penalty", perturbed, original, *forces),
            reference.attack_penalty(perturbed, original, *forces),
            strict=True,
        ):
            same(actual, expected, tolerance=1e-12)  # sums in another order
        weight = torch.randn(shape[0], generator=generator, dtype=torch.float64)
        actual = backend.run("attack_penalty_backward", weight, perturbed, original, *forces)
        same(actual, reference.attack_penalty_backward(weight, perturbed, original, *forces))


@every_backend
def test_a_missing_value_is_not_lost(backend: Backend) -> None:
    perturbed = torch.zeros(2, 1, 5, 5)
    perturbed[0, 0, 2, 2] = math.nan
    penalty, terms = backend.run("attack_penalty", perturbed, torch.zeros(2, 1, 5, 5), 1.0, 1.0, 1.0)
    assert penalty.isnan().tolist() == [True, False] and terms[0, 1] == 1 and (terms[1] == 0).all()


def test_autograd_in_both_images(generator: torch.Generator) -> None:
    perturbed, original = (
        torch.randn((2, 2, 4, 5), generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda a, b: ops.attack_penalty(a, b, 0.3, 0.2, 0.7)[0], (perturbed, original))
    with pytest.raises(NotImplementedError, match="attack_penalty_backward: has no derivative"):
        weight = torch.ones(2, dtype=torch.float64)
        torch.ops.apem_fast.attack_penalty_backward(weight, perturbed, original, 0.3, 0.2, 0.7).sum().backward()


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_and_compile(channels_last: bool, generator: torch.Generator) -> None:
    layout = "channels_last" if channels_last else "contiguous"
    perturbed, original = partly_changed((2, 3, 6, 5), torch.float32, layout, generator)
    torch.library.opcheck(
        torch.ops.apem_fast.attack_penalty.default, (perturbed.requires_grad_(), original, 0.3, 0.2, 0.7)
    )
    weight = torch.ones(2, dtype=torch.float64)
    arguments = weight, perturbed.detach(), original, 0.3, 0.2, 0.7
    torch.library.opcheck(torch.ops.apem_fast.attack_penalty_backward.default, arguments)
    compiled = torch.compile(
        lambda a, b: ops.attack_penalty(a, b, 0.3, 0.2, 0.7)[0] * 2, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(
        compiled(perturbed.detach(), original), ops.attack_penalty(perturbed.detach(), original, 0.3, 0.2, 0.7)[0] * 2
    )


@pytest.mark.parametrize("name", ["attack_penalty", "attack_penalty_backward", "attack_step", "saliency_map"])
def test_compiled_and_reference_schemas_are_one(name: str) -> None:
    inferred = torch.library.infer_schema(getattr(reference, name), mutates_args=())
    assert getattr(torch.ops.apem_fast, name).default._schema == torch._C.parse_schema(f"apem_fast::{name}{inferred}")


T = torch.zeros
BAD = [
    (
        "attack_penalty",
        lambda: (T(3, 4, 4), T(3, 4, 4), 1.0, 0.0, 0.0),
        "perturbed must have shape (N, C, H, W) (got (3, 4, 4))",
    ),
    (
        "attack_penalty",
        lambda: (T(2, 3, 4, 4), T(2, 1, 4, 4), 1.0, 0.0, 0.0),
        "original must have shape (2, 3, 4, 4) (got (2, 1, 4, 4))",
    ),
    (
        "attack_penalty",
        lambda: (T(2, 3, 4, 4), T(2, 3, 4, 4).double(), 1.0, 0.0, 0.0),
        "original must be float32 (got float64)",
    ),
    (
        "attack_penalty",
        lambda: (T(2, 3, 4, 4).long(), T(2, 3, 4, 4).long(), 1.0, 0.0, 0.0),
        "perturbed must be float32, float64, float16 or bfloat16 (got int64)",
    ),
    (
        "attack_penalty_backward",
        lambda: (T(3).double(), T(2, 3, 4, 4), T(2, 3, 4, 4), 1.0, 0.0, 0.0),
        "grad_penalty must have shape (2) (got (3))",
    ),
    (
        "attack_penalty_backward",
        lambda: (T(2), T(2, 3, 4, 4), T(2, 3, 4, 4), 1.0, 0.0, 0.0),
        "grad_penalty must be float64 (got float32)",
    ),
]


@every_backend
@pytest.mark.parametrize("name, arguments, message", BAD)
def test_a_bad_call_gets_one_sentence(backend: Backend, name: str, arguments, message: str) -> None:
    with pytest.raises(RuntimeError) as error:
        backend.run(name, *arguments())
    assert str(error.value) == f"{name}: {message}"
