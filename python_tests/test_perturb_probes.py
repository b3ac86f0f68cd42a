"""perturb_probes: each model input of a batch with an image, map, polarity, level and epsilon of its own."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from backends import Backend, every_backend, native_backend
from hypothesis import given
from tensors import SHAPES, dyadic, every_dtype, every_layout, moved, normal, same, shares_memory
from torch import Tensor

from apem_fast.ops import reference


def probes(images: int, maps: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    def integers(high: int) -> Tensor:
        return torch.randint(0, max(high, 1), (count if high else 0,), generator=generator)

    rows = integers(images)
    count = rows.shape[0]
    return {
        "norm": torch.rand(count, generator=generator, dtype=torch.float64) * 50 + 1,
        "probe_image": rows,
        "probe_map": integers(maps)[:count],
        "probe_irrelevance": torch.rand(count, generator=generator) > 0.5,
        "probe_epsilon": torch.rand(count, generator=generator, dtype=torch.float64) * 99,
        "probe_level": (torch.rand(count, generator=generator, dtype=torch.float64) - 0.5).clamp(min=0),
    }


def on(device: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: moved(value, device) for name, value in arguments.items()}


@every_backend
@pytest.mark.parametrize("map_channels", [1, 3])
def test_against_a_literal_loop(backend: Backend, map_channels: int, generator: torch.Generator) -> None:
    images, gradient = (torch.randn((2, 3, 2, 3), generator=generator, dtype=torch.float64) for _ in range(2))
    relevance = torch.rand((3, map_channels, 2, 3), generator=generator, dtype=torch.float64)
    p = probes(2, 3, 8, generator)
    tensors = {"images": images, "relevance": relevance, "gradient": gradient}
    actual = backend.perturb_probes(**on(backend.device, tensors | p), lower=-2.0, upper=2.0)
    for m in range(8):
        image, chosen = int(p["probe_image"][m]), int(p["probe_map"][m])
        for c in range(3):
            for y in range(2):
                for x in range(3):
                    value = relevance[chosen, c if map_channels == 3 else 0, y, x].item()
                    value = 0.0 if value <= p["probe_level"][m].item() else value
                    value = 1 - value if p["probe_irrelevance"][m] else value
                    sign = 1.0 if gradient[image, c, y, x] > 0 else -1.0
                    expected = images[image, c, y, x].item() + p["probe_epsilon"][m].item() * (
                        value / p["norm"][m].item() * sign
                    )
                    assert actual[m, c, y, x].item() == min(max(expected, -2.0), 2.0)


@native_backend
@every_dtype
@every_layout
@pytest.mark.parametrize("out", [None, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_reference(
    backend: Backend, dtype: torch.dtype, layout: str, out: torch.dtype | None, generator: torch.Generator
) -> None:
    for i, shape in enumerate(SHAPES):
        for map_channels in {1, shape[1]}:
            maps = shape[0] + 1
            relevance = dyadic((maps, map_channels, *shape[2:]), dtype, layout, generator)
            images, gradient = (normal(shape, dtype, layout, generator) for _ in range(2))
            arguments = {
                "images": images,
                "relevance": relevance,
                "gradient": gradient.sign().to(torch.int8) if i % 2 else gradient,
                **probes(shape[0], maps, 5, generator),
            }
            bounds = {"lower": -1.0, "upper": None if i % 3 else 1.5} if i % 2 else {}
            on_device = on(backend.device, arguments)
            actual = backend.perturb_probes(**on_device, **bounds, dtype=out)
            same(actual, reference.perturb_probes(**arguments, **bounds, dtype=out))
            assert not any(shares_memory(actual, argument) for argument in on_device.values())


@every_backend
@given(seed=st.integers(0, 1000), irrelevance=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_equals_perturb_of_directed_relevance(
    backend: Backend, seed: int, irrelevance: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, gradient = (normal((2, 3, 5, 7), dtype, "contiguous", generator) for _ in range(2))
    relevance = dyadic((2, 1, 5, 7), dtype, "contiguous", generator)
    epsilon = torch.rand(3, generator=generator, dtype=torch.float64) * 30
    images, gradient, relevance, epsilon = (moved(t, backend.device) for t in (images, gradient, relevance, epsilon))
    direction = backend.directed_relevance(relevance, gradient, irrelevance)
    expected = backend.perturb(images, direction, epsilon)
    norm = (1 - relevance if irrelevance else relevance).sum(dim=(1, 2, 3), dtype=torch.float64) * 3
    rows = torch.arange(2, device=backend.device).repeat_interleave(3)
    actual = backend.perturb_probes(
        images,
        relevance,
        gradient,
        norm[rows],
        rows,
        rows,
        torch.full_like(rows, irrelevance, dtype=torch.bool),
        epsilon.repeat(2),
        torch.zeros(6, dtype=torch.float64, device=backend.device),
    )
    assert torch.equal(actual, expected.flatten(0, 1))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_signs_and_gradients_are_one(backend: Backend, dtype: torch.dtype, generator: torch.Generator) -> None:
    images = torch.randn((1, 3, 4, 4), generator=generator)
    gradient = normal((1, 3, 4, 4), torch.float32, "contiguous", generator)
    signs = (gradient.sign() * (7 if dtype == torch.int8 else 0.01)).to(dtype)  # only the sign counts
    arguments = {"images": images, "relevance": torch.rand((1, 1, 4, 4), generator=generator)}
    p = probes(1, 1, 4, generator)
    expected = backend.perturb_probes(**on(backend.device, arguments | p | {"gradient": gradient}))
    assert torch.equal(backend.perturb_probes(**on(backend.device, arguments | p | {"gradient": signs})), expected)


# -- into a tensor that is there already -------------------------------------------------------------------------


@every_backend
@every_dtype
@every_layout
def test_into_a_given_tensor(backend: Backend, dtype: torch.dtype, layout: str, generator: torch.Generator) -> None:
    """Bit for bit what is returned otherwise, in either memory format, and nothing beside it."""
    for shape in SHAPES:
        images, gradient = (normal(shape, dtype, layout, generator) for _ in range(2))
        p = probes(shape[0], shape[0] + 1, 5, generator)
        relevance = dyadic((shape[0] + 1, 1, *shape[2:]), dtype, layout, generator)
        arguments = on(backend.device, {"images": images, "relevance": relevance, "gradient": gradient, **p})
        count = len(p["norm"])
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for out_dtype, bounds in ((dtype, {}), (torch.bfloat16, {"lower": -1.0, "upper": 1.5})):
                room = torch.full((count + 2, *shape[1:]), 7.0, dtype=out_dtype, device=backend.device)
                room = room.contiguous(memory_format=memory_format)
                assert backend.perturb_probes_into(room[1 : count + 1], **arguments, **bounds) is None
                assert torch.equal(room[1 : count + 1], backend.perturb_probes(**arguments, **bounds, dtype=out_dtype))
                assert room[0].eq(7).all() and room[-1].eq(7).all()


@every_backend
def test_what_is_written_may_not_be_read(backend: Backend, generator: torch.Generator) -> None:
    memory = moved(torch.rand(5 * 48, generator=generator), backend.device)
    arguments = on(backend.device, probes(2, 2, 3, generator))
    arguments |= {"relevance": memory[192:224].view(2, 1, 4, 4), "gradient": memory[96:192].view(2, 3, 4, 4)}
    with pytest.raises(RuntimeError) as error:
        backend.perturb_probes_into(memory[:144].view(3, 3, 4, 4), images=memory[:96].view(2, 3, 4, 4), **arguments)
    assert str(error.value) == "perturb_probes_into: out must share no memory with images (got some of it)"
    images = memory.clone()[:96].view(2, 3, 4, 4)
    with pytest.raises(RuntimeError, match="out must share no memory with gradient"):
        backend.perturb_probes_into(memory[:144].view(3, 3, 4, 4), images=images, **arguments)
    arguments["gradient"] = images
    expected = backend.perturb_probes(images=images, **arguments)
    backend.perturb_probes_into(memory[:144].view(3, 3, 4, 4), images=images, **arguments)  # ends where the maps begin
    assert torch.equal(memory[:144].view(3, 3, 4, 4), expected)
