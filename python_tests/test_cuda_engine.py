"""The engine on a real GPU: what it captures, that batches, precision and company change nothing, and that a CPU
agrees.

A CPU and a GPU round differently, so they are compared in float64, where no margin of these networks is that close to
0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from networks import Given, epsilons_of, images_and_maps, literal_epsilons, small_network
from test_cuda import why_not
from test_metric import assert_same, snapshot

import apem_fast as af
from apem_fast.running.clean import GraphedGradients, run_clean
from apem_fast.running.runners import KEPT, GraphedRunner
from apem_fast.running.undisturbed import undisturbed

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

GRID = {"max_epsilon": 40.0, "step": 0.25}
FIELDS = ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus", "labels")


@pytest.fixture(autouse=True)
def nothing_is_given_up() -> Iterator[None]:
    """Whatever falls back to the plain model says so in a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="apem:")
        yield


def on_gpu(n: int, dtype: torch.dtype = torch.float32, **options):
    images, relevance = images_and_maps(n, dtype=dtype, **options)
    return small_network(dtype=dtype).cuda(), images.cuda(), relevance.cuda()


def assert_equal(one: af.ApemResult, other: af.ApemResult) -> None:
    for name in FIELDS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("map_channels", [1, 3])
@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
def test_a_cpu_finds_the_same(search: str, map_channels: int) -> None:
    model, images, relevance = on_gpu(12, torch.float64, map_channels=map_channels)
    here = af.apem(model, images, relevance, search=search, **GRID)
    assert_equal(here, af.apem(model.cpu(), images.cpu(), relevance.cpu(), search=search, **GRID))


def test_the_literal_loop_finds_the_same() -> None:
    model, images, relevance = on_gpu(4)
    result = af.apem(model, images, relevance, **GRID)
    with undisturbed(model), torch.enable_grad():
        literal = [literal_epsilons(model, x, r, **GRID) for x, r in zip(images, relevance)]
    assert epsilons_of(result) == literal


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_batches_change_nothing(batch_size: int, memory_format: torch.memory_format) -> None:
    model, images, relevance = on_gpu(24)
    expected = af.apem(model, images, relevance, **GRID)
    images = images.contiguous(memory_format=memory_format)
    assert_equal(af.apem(model, images, relevance, batch_size=batch_size, **GRID), expected)
    alone = [af.apem(model, images[n : n + 1], relevance[n : n + 1], **GRID) for n in range(4)]
    assert [epsilons_of(one)[0] for one in alone] == epsilons_of(expected)[:4]


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "tf32"])
def test_low_precision_changes_nothing(precision: str) -> None:
    model, images, relevance = on_gpu(24)
    assert_equal(
        af.apem(model, images, relevance, precision=precision, **GRID), af.apem(model, images, relevance, **GRID)
    )


def test_compiled_models_change_nothing() -> None:
    model, images, relevance = on_gpu(24)
    assert_equal(af.apem(model, images, relevance, compile=True, **GRID), af.apem(model, images, relevance, **GRID))


def test_batches_are_captured_and_stay_so() -> None:
    model, images, relevance = on_gpu(24)
    evaluator = af.Evaluator(model, images, batch_size=16, **GRID)
    first = evaluator.apem({"maps": relevance})["maps"]
    runner = evaluator._runner
    assert isinstance(runner, GraphedRunner) and runner._ready and runner._seen
    assert evaluator._record._runner._alone
    graphs = dict(runner._ready)
    assert_equal(evaluator.apem({"maps": relevance})["maps"], first)
    other = evaluator.on(images.flip(0)).apem({"maps": relevance.flip(0)})["maps"]
    assert torch.equal(other.epsilon_minus.flip(0), first.epsilon_minus)
    assert runner._ready == graphs
    # Weights written in place are found where they were; weights that moved are captured anew.
    with torch.no_grad():
        model[9].weight.mul_(0.5)
    assert_equal(evaluator.on(images).apem({"maps": relevance})["maps"], af.apem(model, images, relevance, **GRID))
    model[9].weight = torch.nn.Parameter(model[9].weight * 2)
    assert_equal(evaluator.on(images).apem({"maps": relevance})["maps"], first)


class Scaled(torch.nn.Module):
    """A network whose answer depends on more than its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.scale, self.options = small_network().cuda(), 1.0, {"power": [1]}
        self.offset = torch.zeros(10, device="cuda")  # neither a parameter nor a buffer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x * self.scale).sign() * self.network(x).abs() ** self.options["power"][0] + self.offset


def _softplus(model: Scaled) -> None:
    model.network[2] = torch.nn.Softplus().eval()


def _scale(model: Scaled) -> None:
    model.scale = 0.9


def _power(model: Scaled) -> None:
    model.options["power"][0] = 2


def _offset(model: Scaled) -> None:
    model.offset = torch.linspace(-0.2, 0.2, 10, device="cuda")


def _hook(model: Scaled) -> None:
    model.network[2].register_forward_hook(lambda module, args, output: output * 0.9)


def _forward(model: Scaled) -> None:
    model.network[2].forward = torch.nn.functional.silu


def _strides(model: Scaled) -> None:
    last = model.network[-1].weight
    last.data = last.data.as_strided(last.shape, (1, last.shape[0]))


CHANGES = {change.__name__[1:]: change for change in (_softplus, _scale, _power, _offset, _hook, _forward, _strides)}


@pytest.mark.parametrize("change", CHANGES)
def test_graphs_of_a_model_that_has_changed_are_captured_anew(change: str) -> None:
    _, images, relevance = on_gpu(16)
    model = Scaled().eval()
    evaluator = af.Evaluator(model, images, batch_size=8, **GRID)
    before = evaluator.apem({"maps": relevance})["maps"]
    graphs = list(evaluator._runner._ready.values())
    evaluator.on(images).apem({"maps": relevance})
    assert graphs and list(evaluator._runner._ready.values()) == graphs
    CHANGES[change](model)
    expected = af.apem(model, images, relevance, batch_size=8, **GRID)
    assert not torch.equal(expected.epsilon_minus, before.epsilon_minus), "the change should be one that matters"
    assert_equal(evaluator.on(images).apem({"maps": relevance})["maps"], expected)


def test_the_graph_used_longest_ago_is_dropped() -> None:
    model, images, _ = on_gpu(1)
    runner, given = GraphedRunner(model), Given(images)
    with undisturbed(model, images), torch.no_grad():
        runner.begin()
        used = [*range(1, KEPT + 1), 1, KEPT + 1]
        for size in used:
            runner(given, torch.zeros(1, size, dtype=torch.int64), size, True)
        runner.end()
    kept = [shape for shape, *_ in runner._ready]
    assert kept == [*range(3, KEPT + 1), 1, KEPT + 1]


class Waiting(torch.nn.Module):
    """A network that makes the host wait in every forward pass, which no capture survives."""

    def __init__(self, wait: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.network, self.wait = small_network().cuda(), wait

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.wait(x)
        return self.network(x)


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "for a value": lambda x: x.sum().item(),
    "for an upload": lambda x: x - torch.tensor([0.5, 0.5], device=x.device).sum(),
    "unseen by torch": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_model_that_cannot_be_captured_leaves_the_process_as_it_was(wait: str) -> None:
    model, images, relevance = on_gpu(16)
    expected = af.apem(model, images, relevance, batch_size=8, **GRID)
    stream = torch.cuda.current_stream()
    with pytest.warns(RuntimeWarning, match="in a CUDA graph failed"):
        result = af.apem(Waiting(WAITS[wait]).eval(), images, relevance, batch_size=8, **GRID)
    assert_equal(result, expected)
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.randn(3, device="cuda"), torch.rand_like(images)
    evaluator = af.Evaluator(model, images, batch_size=8, **GRID)  # another capture, and nothing is given up
    assert_equal(evaluator.apem({"maps": relevance})["maps"], expected)
    assert evaluator._runner._ready


def test_gradients_side_by_side_are_those_of_the_plain_model() -> None:
    """Many times over: lanes that got into each other's way would not do so every time."""
    model, images, _ = on_gpu(128)
    with undisturbed(model):
        plain, graphed = run_clean(model, images), GraphedGradients(model)
        for _ in range(10):
            clean = run_clean(model, images, graphed)
            for name in ("labels", "logits", "sign", "loss_gradient"):
                assert torch.equal(getattr(clean, name), getattr(plain, name)), name
    assert len(graphed._lanes) == 4


def test_nothing_of_the_users_is_changed() -> None:
    model, images, relevance = on_gpu(12)
    before, random = snapshot(model, images), torch.cuda.get_rng_state()
    af.apem(model, images, relevance, precision="bfloat16", **GRID)
    assert_same(before, snapshot(model, images))
    assert torch.equal(torch.cuda.get_rng_state(), random)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    model, images, relevance = on_gpu(24)
    expected = af.apem(model, images, relevance, **GRID)

    class Large(torch.nn.Module):
        """Takes a sixteenth of the device for each image of a batch."""

        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            _, total = torch.cuda.mem_get_info()
            torch.empty(len(x) * total // 16, dtype=torch.uint8, device=x.device)
            return self.network(x)

    assert_equal(af.apem(Large().eval(), images, relevance, batch_size=16, **GRID), expected)


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
def test_the_filter_finds_what_it_finds_on_a_cpu(search: str) -> None:
    model, images, relevance = on_gpu(2, torch.float64)
    options = {"step": 1.0, "max_epsilon": 40.0, "search": search, "levels": 24}
    here = af.filter_relevance(model, images, relevance, **options)
    there = af.filter_relevance(model.cpu(), images.cpu(), relevance.cpu(), **options)
    assert torch.equal(here.relevance.cpu(), there.relevance)
    assert torch.equal(here.score_after, there.score_after) and torch.equal(here.levels_removed, there.levels_removed)


def test_shuffles_are_those_of_a_cpu() -> None:
    model, images, relevance = on_gpu(4, torch.float64)
    here = af.apem_norm(model, images, relevance, shuffles=3, **GRID)
    there = af.apem_norm(model.cpu(), images.cpu(), relevance.cpu(), shuffles=3, **GRID)
    assert torch.equal(here.score, there.score)
