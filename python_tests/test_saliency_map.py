"""saliency_map: the distance of each pixel's colours, rescaled to [0, 1] (equations 28 and 29)."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from backends import Backend, every_backend, native_backend
from tensors import SHAPES, TOLERANCE, every_dtype, every_layout, normal, same

from apem_fast import ops
from apem_fast.ops import reference


@every_backend
def test_equations_28_and_29_in_numpy(backend: Backend, generator: torch.Generator) -> None:
    original, perturbed = (torch.rand((3, 3, 7, 9), generator=generator, dtype=torch.float64) for _ in range(2))
    actual = backend.run("saliency_map", original, perturbed)
    for n in range(3):
        distance = numpy.linalg.norm(original[n].numpy() - perturbed[n].numpy(), axis=0)
        expected = (distance - distance.min()) / (distance.max() - distance.min())
        numpy.testing.assert_allclose(actual[n, 0].numpy(), expected, rtol=0, atol=1e-14)


@native_backend
@every_dtype
@every_layout
def test_equals_the_reference(backend: Backend, dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    for shape in (*SHAPES, (1, 3, 60, 61)):
        original, perturbed = (normal(shape, dtype, layout, generator) for _ in range(2))
        # In float64 torch's square root may be off in the last place; the kernel's is correctly rounded.
        same(
            backend.run("saliency_map", original, perturbed),
            reference.saliency_map(original, perturbed),
            tolerance=TOLERANCE[dtype] if dtype == torch.float64 else 0.0,
        )


@native_backend
@every_dtype
def test_a_map_that_is_nearly_flat(backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    """The rescaling magnifies every rounding of the distances by their size over their range."""
    original = torch.zeros(2, 3, 16, 16, dtype=dtype)
    perturbed = (1 + torch.rand(original.shape, generator=generator) / 64).to(dtype)
    actual = backend.run("saliency_map", original, perturbed)
    # Two distances and two ends of their range, each off by a unit in the last place of a value below 2, where torch's
    # square root is not correctly rounded (float64); the range itself is above 1/128.
    tolerance = 4 * 2.0**-52 * 128 if dtype == torch.float64 else 0.0
    same(actual, reference.saliency_map(original, perturbed), tolerance=tolerance)


@every_backend
def test_maps_without_contrast_and_missing_values(backend: Backend) -> None:
    original, perturbed = torch.zeros(4, 2, 3, 3), torch.zeros(4, 2, 3, 3)
    perturbed[1] = 2.0
    perturbed[2, 1, 0, 2] = math.nan
    perturbed[3, 0, 1, 1] = -7.0
    saliency = backend.run("saliency_map", original, perturbed)
    assert (saliency[0] == 0).all() and (saliency[1] == 0.5).all() and saliency[2].isnan().all()
    assert saliency[3, 0, 1, 1] == 1 and saliency[3].sum() == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_and_compile(channels_last: bool, generator: torch.Generator) -> None:
    layout = "channels_last" if channels_last else "contiguous"
    pair = [normal((2, 3, 6, 5), torch.float32, layout, generator) for _ in range(2)]
    torch.library.opcheck(torch.ops.apem_fast.saliency_map.default, pair)
    compiled = torch.compile(lambda a, b: ops.saliency_map(a, b) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*pair), ops.saliency_map(*pair) * 2)
    with pytest.raises(NotImplementedError, match="saliency_map: has no derivative"):
        ops.saliency_map(pair[0].requires_grad_(), pair[1]).sum().backward()


@every_backend
def test_a_bad_call_gets_one_sentence(backend: Backend) -> None:
    for pair, message in (
        ((torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)), "original must have shape (N, C, H, W) (got (3, 4, 4))"),
        (
            (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5)),
            "perturbed must have shape (2, 3, 4, 4) (got (2, 3, 4, 5))",
        ),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4).half()), "perturbed must be float32 (got float16)"),
    ):
        with pytest.raises(RuntimeError) as error:
            backend.run("saliency_map", *pair)
        assert str(error.value) == f"saliency_map: {message}"
