"""What only a real GPU can show of the CUDA kernels: that host and device agree to the bit, the stream, graphs, that
nothing waits for the device, the right one of two devices. Their results in general: the tests of each operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from apem_fast import ops


def why_not() -> str | None:
    if not torch.cuda.is_available():
        return "no NVIDIA GPU"
    if ops.backend() != "cuda":
        return f"the operators were built without CUDA (backend: {ops.backend()})"
    return None


pytestmark = [pytest.mark.cuda, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

raw = torch.ops.apem_fast
CLASSES = 1000
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Packs of 4 and 8 elements fit the rows of the first, not those of the second; the third is not of three channels.
SMALL = ((3, 8, 16), (3, 13, 11), (4, 8, 8))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """`values` in another order of memory, or one element behind a boundary that fits vectors."""
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "offset" and values.dim() > 1:
        room = values.new_zeros(values.numel() + 1)
        return room[1:].view(values.shape).copy_(values)
    return values


def inputs(
    device: str,
    dtype: torch.dtype = torch.float32,
    image: tuple[int, int, int] = (3, 224, 224),
    layout: str = "contiguous",
) -> dict[str, Tensor]:
    """Images, maps, probes and logits, drawn on the CPU so that every device gets the same."""
    g = torch.Generator().manual_seed(7)
    n, maps, probes = 4, 5, 33
    shape = (n, *image)
    made = {
        "images": torch.randn(shape, generator=g).to(dtype),
        "relevance": torch.rand((maps, 1, *image[1:]), generator=g).to(dtype),
        "gradient": torch.randn(shape, generator=g).to(dtype),
        "norm": torch.rand(probes, generator=g, dtype=torch.float64) * 1e5 + 1,
        "probe_image": torch.randint(0, n, (probes,), generator=g),
        "probe_map": torch.randint(0, maps, (probes,), generator=g),
        "probe_irrelevance": torch.rand(probes, generator=g) < 0.5,
        "probe_epsilon": torch.rand(probes, generator=g, dtype=torch.float64) * 4096,
        "probe_level": torch.rand(probes, generator=g, dtype=torch.float64) / 2,
        "logits": torch.randn((probes, CLASSES), generator=g).to(dtype),
        "labels": torch.randint(0, CLASSES, (probes,), generator=g),
        "epsilon": torch.rand(9, generator=g).to(dtype),
        "predicted": torch.randint(0, 2, (probes, 300), generator=g),
        "grid": torch.arange(300.0),
        "levels": torch.linspace(0, 1, 41),
    }
    return {name: laid_out(value.to(device), layout) for name, value in made.items()}


PROBES = "images relevance gradient norm probe_image probe_map probe_irrelevance probe_epsilon probe_level".split()


def probes_of(x: dict[str, Tensor], **options: Any) -> Tensor:
    return raw.perturb_probes(*(x[name] for name in PROBES), **options)


def written_by(x: dict[str, Tensor]) -> Tensor:
    """The same, by the form that writes into a given tensor."""
    out = x["images"].new_full((len(x["norm"]), *x["images"].shape[1:]), torch.nan)
    out = out.contiguous(memory_format=torch.channels_last)
    raw.perturb_probes_into(out, *(x[name] for name in PROBES))
    return out


# Operators whose every step is the host's, in the host's order.
EXACT: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "perturb_probes": lambda x: probes_of(x),
    "perturb_probes bounded": lambda x: probes_of(x, lower=-1.0, upper=1.0, dtype=torch.bfloat16),
    "perturb_probes of signs": lambda x: probes_of({**x, "gradient": x["gradient"].sign().to(torch.int8)}),
    "perturb_probes channels-last": lambda x: probes_of(
        {**x, "images": x["images"].to(memory_format=torch.channels_last)}
    ),
    "perturb_probes_into": lambda x: written_by(x),
    "perturb": lambda x: raw.perturb(x["images"], x["gradient"], x["epsilon"], -1.0, 1.0),
    "perturb_backward": lambda x: raw.perturb_backward(
        x["images"][:, None].expand(-1, 9, -1, -1, -1), x["images"], x["gradient"], x["epsilon"], -1.0, 1.0
    ),
    "label_margin": lambda x: raw.label_margin(x["logits"], x["labels"]),
    "probe_answers": lambda x: raw.probe_answers(x["logits"], x["labels"], x["logits"] > 1),
    "label_margin_backward": lambda x: raw.label_margin_backward(x["logits"][:, 0], x["logits"], x["labels"]),
    "first_flip": lambda x: raw.first_flip(x["predicted"], x["predicted"][:, 0], x["grid"]),
    "relevance_map": lambda x: raw.relevance_map(x["gradient"], x["images"], 99.0, "sum"),
    "relevance_map keep": lambda x: raw.relevance_map(x["gradient"], None, 99.0, "keep"),
    "attack_penalty_backward": lambda x: raw.attack_penalty_backward(
        x["norm"][:4], x["images"], x["gradient"], 0.3, 0.2, 0.7
    ),
    "attack_step": lambda x: raw.attack_step(x["images"], x["gradient"], None, None, 0.3, 0.0),
    "attack_step of everything": lambda x: raw.attack_step(
        x["images"], x["gradient"], x["images"], x["relevance"][:4] > 0.5, 0.3, 0.7, -1.0, 1.0, x["gradient"], 0.5
    ),
    "saliency_map": lambda x: raw.saliency_map(x["images"], x["gradient"]),
    "saliency_map channels-last": lambda x: raw.saliency_map(
        *(x[name].to(memory_format=torch.channels_last) for name in ("images", "gradient"))
    ),
}
# Those with a sum of many values, whose order differs.
SUMMING: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "directed_relevance": lambda x: raw.directed_relevance(x["relevance"][:4], x["gradient"]),
    "directed_relevance_backward": lambda x: raw.directed_relevance_backward(
        x["images"], x["relevance"][:4], x["gradient"]
    ),
    "attack_penalty": lambda x: raw.attack_penalty(x["images"], x["gradient"], 0.3, 0.2, 0.7),
    "attack_penalty channels-last": lambda x: raw.attack_penalty(
        *(x[name].to(memory_format=torch.channels_last) for name in ("images", "gradient")), 0.3, 0.2, 0.7
    ),
    "zero_levels": lambda x: raw.zero_levels(x["relevance"], x["levels"]),
}
OPERATORS = EXACT | SUMMING


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_device_and_host_agree(name: str, *of: Any) -> None:
    on_device = as_tuple(OPERATORS[name](inputs("cuda", *of)))
    on_host = as_tuple(OPERATORS[name](inputs("cpu", *of)))
    for actual, expected in zip(on_device, on_host):
        assert actual.is_cuda and actual.stride() == expected.stride()
        if name in EXACT:
            assert torch.equal(actual.cpu(), expected)
        else:
            torch.testing.assert_close(actual.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_device_and_host_agree(name: str, dtype: torch.dtype) -> None:
    assert_device_and_host_agree(name, dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset"])
@pytest.mark.parametrize("image", SMALL, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_small_inputs_agree(name: str, image: tuple[int, int, int], layout: str) -> None:
    """Few enough for compute-sanitizer, and every path of the kernels: bench/cuda_checks.sh."""
    for dtype in DTYPES:
        assert_device_and_host_agree(name, dtype, image, layout)


@pytest.mark.parametrize("name", OPERATORS)
def test_two_runs_give_the_same_bits(name: str) -> None:
    x = inputs("cuda")
    for first, second in zip(as_tuple(OPERATORS[name](x)), as_tuple(OPERATORS[name](x))):
        assert torch.equal(first, second)


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("name", OPERATORS)
def test_nothing_waits_for_the_device(name: str, request: pytest.FixtureRequest) -> None:
    x = inputs("cuda")
    request.getfixturevalue("no_synchronisation")
    OPERATORS[name](x)


@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_run_on_the_current_stream(name: str) -> None:
    """The inputs are written on a stream that is kept busy first: a kernel on another stream would read zeros."""
    x = inputs("cuda")
    expected = as_tuple(OPERATORS[name](x))
    late = {key: torch.zeros_like(value) for key, value in x.items()}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        for key, value in x.items():
            late[key].copy_(value)
        actual = as_tuple(OPERATORS[name](late))
    stream.synchronize()
    for one, other in zip(actual, expected):
        assert torch.equal(one, other)


def test_probes_and_margins_in_a_graph() -> None:
    """One batch of the probe engine, captured once and replayed on other probes."""
    x = inputs("cuda")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 7, stride=8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(64, CLASSES),
    ).cuda()

    def margins() -> tuple[Tensor, Tensor]:
        return raw.label_margin(model(probes_of(x)), x["labels"])

    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            margins()
        torch.cuda.current_stream().wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = margins()
        for factor in (1.0, 0.25):
            x["probe_epsilon"].mul_(factor)
            x["probe_image"].copy_(x["probe_image"].roll(1))
            graph.replay()
            for actual, expected in zip(captured, margins()):
                torch.testing.assert_close(actual, expected)


def test_indices_out_of_range_give_nan() -> None:
    x = inputs("cuda")
    x["probe_image"][0], x["probe_map"][1], x["probe_image"][2] = 4, -1, -1
    missing = probes_of(x).isnan().flatten(1)
    assert missing[:3].all() and not missing[3:].any()
    x["labels"][0], x["labels"][1] = CLASSES, -1
    margin, predicted = raw.label_margin(x["logits"], x["labels"])
    assert margin[:2].isnan().all() and not margin[2:].isnan().any()
    assert torch.equal(predicted, x["logits"].argmax(dim=1))


def test_more_probes_than_a_grid_has_rows() -> None:
    count = 600_000  # 65,535 rows of blocks, each of up to 8 probes where a grid has room
    images = torch.arange(2.0, device="cuda").reshape(2, 1, 1, 1)
    ones = torch.ones(count, dtype=torch.float64, device="cuda")
    rows = torch.arange(count, device="cuda") % 2
    out = raw.perturb_probes(
        images, torch.ones_like(images), torch.ones_like(images), ones, rows, rows, rows < 0, ones * 3, ones * 0
    )
    assert torch.equal(out.flatten(), rows + 3.0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("name", OPERATORS)
def test_the_inputs_device_is_used_whichever_is_current(name: str) -> None:
    expected = as_tuple(OPERATORS[name](inputs("cuda:0")))
    with torch.cuda.device(0):
        for actual, other in zip(as_tuple(OPERATORS[name](inputs("cuda:1"))), expected):
            assert actual.device == torch.device("cuda:1")
            assert torch.equal(actual.cpu(), other.cpu())
        assert torch.cuda.current_device() == 0
