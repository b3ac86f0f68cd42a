"""relevance_map: absolute values, percentile clipping, product with the image, channel sum, rescaling to [0, 1]."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy
import pytest
import torch
from backends import Backend, every_backend, native_backend
from hypothesis import given
from tensors import SHAPES, every_dtype, every_layout, moved, normal, same, shares_memory

from apem_fast.ops import reference

channel_modes = pytest.mark.parametrize("channels", ["sum", "keep"])


@every_backend
@channel_modes
@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("percentile", [None, 0.0, 37.5, 99.0, 100.0])
def test_against_numpy(
    backend: Backend, channels: str, product: bool, percentile: float | None, generator: torch.Generator
) -> None:
    attribution = torch.randn((3, 3, 8, 9), generator=generator, dtype=torch.float64)
    pixels = torch.rand((3, 3, 8, 9), generator=generator, dtype=torch.float64)
    images = moved(pixels, backend.device) if product else None
    actual = backend.relevance_map(moved(attribution, backend.device), images, percentile, channels).cpu().numpy()
    for n in range(3):
        value = numpy.abs(attribution[n].numpy())
        if percentile is not None:
            value = numpy.minimum(value, numpy.percentile(value, percentile))
        if product:
            value = value * pixels[n].numpy()
        if channels == "sum":
            value = value.sum(axis=0, keepdims=True)
        span = value.max() - value.min()
        expected = (value - value.min()) / span if span else numpy.full_like(value, 0.5)
        numpy.testing.assert_allclose(actual[n], expected, rtol=0, atol=1e-12)


@every_backend
@given(data=st.data(), percentile=st.floats(0, 100), size=st.integers(1, 60))
def test_the_percentile_is_that_of_numpy(backend: Backend, data: st.DataObject, percentile: float, size: int) -> None:
    values = data.draw(st.lists(st.floats(-100, 100, width=32), min_size=size, max_size=size))
    attribution = torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, size)
    relevance = backend.relevance_map(moved(attribution, backend.device), None, percentile, "keep").cpu().double()
    magnitude = numpy.abs(numpy.array(values, dtype=numpy.float64))
    limit = numpy.percentile(magnitude, percentile)
    span = limit - min(magnitude.min(), limit)
    if span > 1e-4:  # below, the rescaling magnifies the rounding of the limit
        clipped = numpy.minimum(magnitude, limit)
        expected = (clipped - clipped.min()) / span
        numpy.testing.assert_allclose(relevance.flatten().numpy(), expected, rtol=0, atol=1e-6 + 1e-5 / span)


@native_backend
@every_dtype
@pytest.mark.parametrize("percentile", [0.0, 50.0, 99.0, 99.9, 100.0])
def test_images_whose_percentile_is_narrowed_down_first(
    backend: Backend, dtype: torch.dtype, percentile: float, generator: torch.Generator
) -> None:
    """Large ones on a GPU. Where its sample misleads, and among equal values, the percentile is the same."""
    side = 160 if backend.device == "cuda" else 24
    values = torch.randn((7, 3, side, side), generator=generator)
    values[1] *= torch.logspace(-6, 4, side)  # of every magnitude, and sorted along each row
    values[2] = values[2].relu().sub(1.5).relu()  # nearly all are 0
    values[3] = 2.0
    values[4] = values[4].round()
    values[5, :, : side // 2], values[5, 0, 0, :4] = 0.001, torch.inf
    values[6, 2, 3, 3] = torch.nan
    attribution = values.to(dtype)
    for channels in ("sum", "keep"):
        for images in (None, attribution.nan_to_num().sigmoid()):
            expected = reference.relevance_map(attribution, images, percentile, channels)
            arguments = [None if t is None else moved(t, backend.device) for t in (attribution, images)]
            same(backend.relevance_map(*arguments, percentile, channels), expected)


@native_backend
@every_dtype
@every_layout
@channel_modes
def test_equals_the_reference(
    backend: Backend, dtype: torch.dtype, layout: str, channels: str, generator: torch.Generator
) -> None:
    for i, shape in enumerate(SHAPES):
        attribution = normal(shape, dtype, layout, generator)
        for image_channels in {0, 1, shape[1]}:
            percentile = (None, 0.0, 50.0, 99.0, 100.0, 37.3)[(i + image_channels) % 6]
            images = (
                normal((shape[0], image_channels, *shape[2:]), dtype, layout, generator) if image_channels else None
            )
            expected = reference.relevance_map(attribution, images, percentile, channels)
            on_device = [moved(t, backend.device) for t in (attribution, images)]
            actual = backend.relevance_map(*on_device, percentile, channels)
            same(actual, expected)
            assert not any(shares_memory(actual, t) for t in on_device if t is not None)


@native_backend
@every_dtype
def test_equal_and_extreme_values_equal_the_reference(
    backend: Backend, dtype: torch.dtype, generator: torch.Generator
) -> None:
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    few = torch.tensor([0.0, -0.0, tiny / 2, -tiny, 1.0, -1.0, huge, math.inf, -math.inf], dtype=torch.float64).to(
        dtype
    )
    for size in (1, 2, 3, 100):
        for kinds in (1, 3, 6, 9):
            attribution = few[torch.randint(0, kinds, (4, 1, 1, size), generator=generator)]
            for percentile in (0.0, 33.0, 50.0, 99.0, 100.0):
                expected = reference.relevance_map(attribution, None, percentile, "keep")
                same(backend.relevance_map(moved(attribution, backend.device), None, percentile, "keep"), expected)


@every_backend
@channel_modes
@pytest.mark.parametrize("percentile", [None, 99.0])
def test_maps_without_contrast_and_missing_values(backend: Backend, channels: str, percentile: float | None) -> None:
    attribution = torch.zeros(4, 2, 3, 3, device=backend.device)
    attribution[1] = -4.0
    attribution[2, 1, 2, 2] = math.nan
    attribution[3, 0, 0, :] = 1.0
    relevance = backend.relevance_map(attribution, None, percentile, channels)
    assert (relevance[0] == 0).all()
    assert (relevance[1] == 0.5).all()
    assert relevance[2].isnan().all()
    assert relevance[3].amin() == 0 and relevance[3].amax() == 1  # its neighbours do not matter
