"""The CUDA kernels, run by the emulator, against the reference definitions: shapes that no block size divides, one
element, pointers between 16-byte boundaries, every dtype and memory format, more work than a grid has blocks."""

from __future__ import annotations

import emulated
import pytest
import torch
from torch import Tensor

from apem_fast.ops import reference

pytestmark = pytest.mark.skipif(emulated.why_not() is not None, reason=f"no emulator: {emulated.why_not()}")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Packs of 2, 4 or 8 elements fit the rows of (2, 3, 8, 16) and (2, 4, 8, 8), not those of the others.
SHAPES = [(1, 1, 1, 1), (2, 3, 8, 16), (3, 4, 8, 8), (2, 3, 13, 11), (1, 3, 20, 28)]
# "offset": the first element lies one element behind a boundary. "strided": every second column of a wider tensor.
LAYOUTS = ["contiguous", "channels_last", "offset", "channels_last offset", "strided"]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 3e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """`values` (N, C, H, W) in another place and order of memory."""
    if layout == "strided":
        wide = values.new_zeros((*values.shape[:3], 2 * values.shape[3]))
        wide[..., ::2] = values
        return wide[..., ::2]
    ordered = values.contiguous(
        memory_format=torch.channels_last if "channels_last" in layout else torch.contiguous_format
    )
    if "offset" not in layout:
        return ordered
    room = values.new_zeros(values.numel() + 1)
    moved = room[1:].as_strided(ordered.shape, ordered.stride())
    return moved.copy_(ordered)


def test_the_layouts_are_what_they_say() -> None:
    values = torch.arange(24.0).reshape(1, 3, 2, 4)
    for layout in LAYOUTS:
        moved = laid_out(values, layout)
        assert torch.equal(moved, values)
        assert moved.is_contiguous(memory_format=torch.channels_last) == ("channels_last" in layout)
        assert (moved.data_ptr() % 16 == 4) == ("offset" in layout)


def same(actual: Tensor, expected: Tensor, *, exactly: bool) -> None:
    assert actual.stride() == expected.stride()
    tolerance = 0.0 if exactly else TOLERANCE[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance / 100, equal_nan=True)


def images_like(shape: tuple[int, ...], dtype: torch.dtype, layout: str, generator: torch.Generator) -> Tensor:
    return laid_out(torch.randn(shape, generator=generator).to(dtype), layout)


def maps_like(shape: tuple[int, ...], dtype: torch.dtype, layout: str, generator: torch.Generator) -> Tensor:
    """Relevance with a few levels, so that filters and ties have something to do, and nowhere only 0 or only 1."""
    levels = torch.randint(0, 9, shape, generator=generator) / 8
    levels.flatten(1)[:, 0] = 0.375
    return laid_out(levels.to(dtype), layout)


def signs_like(shape: tuple[int, ...], dtype: torch.dtype, layout: str, generator: torch.Generator) -> Tensor:
    signs = torch.randint(-1, 2, shape, generator=generator)
    return laid_out(signs.to(dtype) if dtype == torch.int8 else (signs * 0.01).to(dtype), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perturb_probes(dtype: torch.dtype, shape: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    n, c, h, w = shape
    probes, maps = 7, n + 1
    images = images_like(shape, dtype, layout, generator)
    per_probe = (
        torch.rand(probes, generator=generator, dtype=torch.float64) * 90 + 10,
        torch.randint(0, n, (probes,), generator=generator),
        torch.randint(0, maps, (probes,), generator=generator),
        torch.rand(probes, generator=generator) < 0.5,
        torch.rand(probes, generator=generator, dtype=torch.float64) * 4000,
        torch.rand(probes, generator=generator, dtype=torch.float64),
    )
    for channels in {1, c}:
        relevance = maps_like((maps, channels, h, w), dtype, layout, generator)
        for gradient_dtype in (dtype, torch.int8):
            gradient = signs_like(shape, gradient_dtype, layout, generator)
            for options in (
                (None, None, None),
                (-1.0, 2.5, None),
                (None, 1.5, torch.bfloat16),
                (0.0, None, torch.float16),
            ):
                arguments = (images, relevance, gradient, *per_probe, *options)
                same(emulated.perturb_probes(*arguments), reference.perturb_probes(*arguments), exactly=True)


def test_perturb_probes_reads_per_probe_tensors_at_any_stride(generator: torch.Generator) -> None:
    images, relevance = torch.randn(2, 3, 4, 4, generator=generator), torch.rand(2, 1, 4, 4, generator=generator)
    every_second = (
        torch.rand(10, dtype=torch.float64, generator=generator) + 1,
        torch.randint(0, 2, (10,), generator=generator),
        torch.randint(0, 2, (10,), generator=generator),
        torch.rand(10, generator=generator) < 0.5,
        torch.rand(10, dtype=torch.float64, generator=generator),
        torch.rand(10, dtype=torch.float64, generator=generator),
    )
    arguments = (images, relevance, images.sign(), *(tensor[::2] for tensor in every_second))
    same(emulated.perturb_probes(*arguments), reference.perturb_probes(*arguments), exactly=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_directed_relevance(
    dtype: torch.dtype, shape: tuple[int, ...], layout: str, generator: torch.Generator
) -> None:
    n, c, h, w = shape
    for channels in {1, c}:
        relevance = maps_like((n, channels, h, w), dtype, layout, generator)
        for gradient_dtype in (dtype, torch.int8):
            gradient = signs_like(shape, gradient_dtype, layout, generator)
            grad = images_like(shape, dtype, layout, generator)
            for irrelevance in (False, True):
                arguments = (relevance, gradient, irrelevance)
                same(emulated.directed_relevance(*arguments), reference.directed_relevance(*arguments), exactly=False)
                same(
                    emulated.directed_relevance_backward(grad, *arguments),
                    reference.directed_relevance_backward(grad, *arguments),
                    exactly=False,
                )


def test_directed_relevance_sums_many_chunks(generator: torch.Generator) -> None:
    """More chunks than a grid has blocks, and a last one that is shorter than the others."""
    relevance, gradient = (
        torch.rand(1, 1, 173, 301, generator=generator),
        torch.randn(1, 2, 173, 301, generator=generator),
    )
    same(
        emulated.directed_relevance(relevance, gradient),
        reference.directed_relevance(relevance, gradient),
        exactly=False,
    )


def test_a_map_without_a_direction_gives_nan() -> None:
    direction = emulated.directed_relevance(torch.zeros(1, 1, 2, 2), torch.ones(1, 3, 2, 2))
    assert direction.isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_perturb(dtype: torch.dtype, shape: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    images = images_like(shape, dtype, layout, generator)
    direction = images_like(shape, dtype, layout, generator)
    for steps in (1, 5):
        for epsilon_shape in ((steps,), (shape[0], steps)):
            for epsilon_dtype in {dtype, torch.float64, torch.float32}:
                epsilon = torch.rand(epsilon_shape, generator=generator).to(epsilon_dtype)
                for bounds in ((None, None), (-0.5, 0.75)):
                    arguments = (images, direction, epsilon, *bounds)
                    perturbed = reference.perturb(*arguments)
                    same(emulated.perturb(*arguments), perturbed, exactly=True)
                    grad = torch.randn(perturbed.shape, generator=generator).to(dtype)
                    for actual, expected in zip(
                        emulated.perturb_backward(grad, *arguments), reference.perturb_backward(grad, *arguments)
                    ):
                        same(actual, expected, exactly=True)


def test_perturb_with_more_epsilons_than_one_read_serves(generator: torch.Generator) -> None:
    images, direction = torch.randn(2, 1, 2, 2, 2, generator=generator)
    images, direction = images.reshape(1, 2, 2, 2), direction.reshape(1, 2, 2, 2)
    epsilon = torch.linspace(0, 1, 101)
    same(emulated.perturb(images, direction, epsilon), reference.perturb(images, direction, epsilon), exactly=True)


@pytest.mark.parametrize("classes", [2, 3, 8, 61, 64, 130, 1000, 1001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_label_margin(dtype: torch.dtype, classes: int, generator: torch.Generator) -> None:
    rows = 9
    logits = torch.randint(-4, 5, (rows, classes), generator=generator).to(dtype)  # many ties
    logits[1] = torch.randn(classes, generator=generator).to(dtype)
    logits[2, classes - 1], logits[3, 0] = torch.nan, torch.inf
    logits[4] = -torch.inf
    logits[5, 0], logits[5, classes - 1] = torch.inf, torch.nan
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[7], labels[8] = logits[7].argmax(), classes - 1
    offset = laid_out(logits[None, None], "offset")[0, 0]
    transposed = logits.t().contiguous().t()
    grad = torch.randn(rows, generator=generator).to(dtype)
    for layout in (logits, offset, transposed):
        for actual, expected in zip(emulated.label_margin(layout, labels), reference.label_margin(layout, labels)):
            same(actual, expected, exactly=True)
        arguments = (grad, layout, labels)
        same(emulated.label_margin_backward(*arguments), reference.label_margin_backward(*arguments), exactly=True)
        for above in (None, logits > 2):
            answers = emulated.probe_answers(layout, labels, above)
            same(answers, reference.probe_answers(layout, labels, above), exactly=True)


@pytest.mark.parametrize("count", [1, 2, 7, 64, 130, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_first_flip(dtype: torch.dtype, count: int, generator: torch.Generator) -> None:
    rays = 8
    labels = torch.randint(0, 3, (rays,), generator=generator)
    predicted = torch.where(torch.rand(rays, count, generator=generator) < 2 / count, 3, labels[:, None])
    predicted[0], predicted[1] = labels[0], 3
    offset = laid_out(predicted[None, None], "offset")[0, 0]
    shared = torch.randperm(count, generator=generator).to(dtype)
    own = torch.rand(rays, count, generator=generator).to(dtype)
    own[1, count // 2] = torch.nan
    for epsilon in (shared, own):
        for layout in (predicted, offset):
            arguments = (layout, labels, epsilon)
            same(emulated.first_flip(*arguments), reference.first_flip(*arguments), exactly=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relevance_map(dtype: torch.dtype, shape: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    n, _, h, w = shape
    attribution = images_like(shape, dtype, layout, generator)
    pixels = [None, maps_like(shape, dtype, layout, generator), maps_like((n, 1, h, w), dtype, layout, generator)]
    for images in pixels:
        for channels in ("sum", "keep"):
            for percentile in (None, 99.0, 50.0) if images is None else (99.0,):
                arguments = (attribution, images, percentile, channels)
                same(emulated.relevance_map(*arguments), reference.relevance_map(*arguments), exactly=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("percentile", [0.0, 12.5, 37.3, 99.0, 99.9, 100.0])
def test_relevance_map_selects_any_percentile(
    percentile: float, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Values of every magnitude, repeated ones, zeros of both signs; the clipped values are the outputs' maxima."""
    spread = torch.randn(6, 1, 12, 16, generator=generator) * torch.logspace(-6, 4, 6)[:, None, None, None]
    spread[1] = spread[1].round(decimals=3)
    spread[2, 0, :6] = 0.0
    spread[3, 0, ::2] = -0.0
    spread[4] = 2.0
    spread[5, 0, 0, :8] = torch.inf
    arguments = (spread.to(dtype), None, percentile, "keep")
    same(emulated.relevance_map(*arguments), reference.relevance_map(*arguments), exactly=True)


def test_relevance_map_passes_nan_through() -> None:
    attribution = torch.rand(3, 3, 4, 4)
    attribution[1, 2, 3, 3] = torch.nan
    relevance = emulated.relevance_map(attribution)
    assert relevance[1].isnan().all() and not relevance[[0, 2]].isnan().any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attack_penalty(dtype: torch.dtype, shape: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    original, perturbed = (maps_like(shape, dtype, layout, generator) for _ in range(2))  # many equal pixels
    weight = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    for forces in ((0.3, 0.2, 0.7), (0.0, 1.0, 0.0)):
        arguments = (perturbed, original, *forces)
        for actual, expected in zip(emulated.attack_penalty(*arguments), reference.attack_penalty(*arguments)):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        same(
            emulated.attack_penalty_backward(weight, *arguments),
            reference.attack_penalty_backward(weight, *arguments),
            exactly=True,
        )


def test_attack_penalty_sums_many_chunks(generator: torch.Generator) -> None:
    """More chunks than a grid has blocks, and a last one that is shorter than the others."""
    for width in (301, 304):
        perturbed, original = torch.randn((2, 1, 2, 173, width), generator=generator)
        arguments = (perturbed, original, 0.3, 0.2, 0.7)
        for actual, expected in zip(emulated.attack_penalty(*arguments), reference.attack_penalty(*arguments)):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        saliency = emulated.saliency_map(original, perturbed)
        same(saliency, reference.saliency_map(original, perturbed), exactly=False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attack_step(dtype: torch.dtype, shape: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    n, c, h, w = shape
    value, gradient, previous, original = (images_like(shape, dtype, layout, generator) for _ in range(4))
    for masks, channels in ((0, 0), (1, 1), (n, 1), (1, c), (n, c)):
        region = laid_out(torch.rand((masks, channels, h, w), generator=generator) < 0.5, layout) if masks else None
        for damped in (None, previous):
            for bounds, zero in (((None, None), 0.0), ((-0.5, 0.75), 0.3)):
                arguments = (value, gradient, damped, region, 0.4, 0.7, *bounds, original, zero)
                same(emulated.attack_step(*arguments), reference.attack_step(*arguments), exactly=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saliency_map(dtype: torch.dtype, shape: tuple[int, ...], layout: str, generator: torch.Generator) -> None:
    original, perturbed = (images_like(shape, dtype, layout, generator) for _ in range(2))
    arguments = (original, perturbed)
    # In float64 torch's square root may be off in the last place; the kernel's is correctly rounded.
    exactly = dtype != torch.float64
    same(emulated.saliency_map(*arguments), reference.saliency_map(*arguments), exactly=exactly)


@pytest.mark.parametrize("limit", [(1, 1), (1, 2), (1000, 1000)], ids=str)
def test_the_size_of_the_grid_changes_no_bit(limit: tuple[int, int], generator: torch.Generator) -> None:
    shape = (5, 3, 20, 24)
    images, gradient = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    relevance = torch.rand(5, 1, 20, 24, generator=generator)
    probes = torch.arange(5)
    ones = torch.ones(5, dtype=torch.float64)

    def everything() -> list[Tensor]:
        direction = emulated.directed_relevance(relevance, gradient)
        return [
            direction,
            emulated.directed_relevance_backward(images, relevance, gradient),
            emulated.perturb(images, direction, torch.arange(20.0)),
            *emulated.perturb_backward(images[:, None].repeat(1, 20, 1, 1, 1), images, direction, torch.arange(20.0)),
            emulated.perturb_probes(images, relevance, gradient, ones, probes, probes, probes > 2, 9 * ones, 0 * ones),
            *emulated.label_margin(images.flatten(1), probes),
            emulated.probe_answers(images.flatten(1), probes),
            emulated.label_margin_backward(images[:, 0, 0, 0], images.flatten(1), probes),
            emulated.first_flip(probes.expand(5, 5), probes, ones),
            emulated.relevance_map(images),
            *emulated.attack_penalty(images, gradient, 0.3, 0.2, 0.7),
            emulated.attack_penalty_backward(ones, images, gradient, 0.3, 0.2, 0.7),
            emulated.attack_step(images, gradient, images, relevance > 0.5, 0.3, 0.7, -1.0, 1.0, gradient, 0.5),
            emulated.saliency_map(images, gradient),
        ]

    expected = everything()
    with emulated.grid_limit(*limit):
        for actual, once_more in zip(everything(), expected):
            assert torch.equal(actual, once_more)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_empty_images(shape: tuple[int, ...]) -> None:
    n, c, h, w = shape
    images, relevance = torch.zeros(shape), torch.zeros(n, 1, h, w)
    for name, arguments in {
        "directed_relevance": (relevance, images),
        "directed_relevance_backward": (images, relevance, images),
        "perturb": (images, images, torch.ones(2)),
        "perturb_backward": (torch.zeros(n, 2, c, h, w), images, images, torch.ones(2)),
        "relevance_map": (images,),
        "attack_penalty": (images, images, 0.3, 0.2, 0.7),
        "attack_penalty_backward": (torch.ones(n, dtype=torch.float64), images, images, 0.3, 0.2, 0.7),
        "attack_step": (images, images, None, None, 0.3, 0.7),
        "saliency_map": (images, images),
    }.items():
        actual, expected = getattr(emulated, name)(*arguments), getattr(reference, name)(*arguments)
        for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (actual, expected))):
            assert torch.equal(one, other), name


def test_nothing_to_do() -> None:
    images, relevance = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    no_row, no_value = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    probes = emulated.perturb_probes(
        images, relevance, images, no_value, no_row, no_row, no_row.bool(), no_value, no_value
    )
    assert probes.shape == (0, 3, 4, 4)
    assert emulated.perturb(images, images, torch.zeros(0)).shape == (2, 0, 3, 4, 4)
    grads = emulated.perturb_backward(torch.zeros(2, 0, 3, 4, 4), images, images, torch.zeros(0))
    assert all(torch.equal(grad, images) for grad in grads)
    margin, predicted = emulated.label_margin(torch.zeros(0, 3), no_row)
    assert margin.shape == predicted.shape == (0,)
    assert emulated.probe_answers(torch.zeros(0, 3), no_row).shape == (3, 0)
    assert emulated.label_margin_backward(torch.zeros(0), torch.zeros(0, 3), no_row).shape == (0, 3)
    assert emulated.first_flip(torch.zeros(0, 4, dtype=torch.int64), no_row, torch.zeros(4)).shape == (0,)
    assert (
        emulated.first_flip(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(0))
        .isinf()
        .all()
    )
