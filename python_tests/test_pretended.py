"""The pretended GPU refuses what CUDA refuses, allows what it allows, and counts what makes the host wait."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from networks import small_network
from pretended import GPU, OnGPU, PretendedGPU
from torch import Tensor, nn

import apem_fast.ops  # noqa: F401  (registers the operators)


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    with PretendedGPU() as gpu:
        yield gpu


def on_gpu(*shape: int) -> Tensor:
    return torch.ones(shape).to("cuda")


CPU = torch.ones(3, 4)
MIXED: dict[str, Callable[[Tensor], object]] = {
    "add": lambda x: x + CPU,
    "add, the other way round": lambda x: CPU + x,
    "in place": lambda x: CPU.add_(x),
    "matrix product": lambda x: x @ CPU.T,
    "cat": lambda x: torch.cat([x, CPU]),
    "stack of scalars": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "where": lambda x: torch.where(CPU > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(CPU > 0, 1.0),
    "gather": lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
    "index_select": lambda x: x.index_select(0, torch.tensor([0])),
    "a CPU tensor by an index on the device": lambda x: CPU[x[:, 0].long()],
    "layer": lambda x: nn.Linear(4, 2)(x),
    "an operator of ours": lambda x: torch.ops.apem_fast.label_margin(x, torch.zeros(3, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", MIXED)
def test_devices_do_not_mix(name: str, gpu: PretendedGPU) -> None:
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        MIXED[name](on_gpu(3, 4))


ALLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "a scalar of the CPU": lambda x: x * torch.tensor(2.0),
    "a number": lambda x: x + 1,
    "an index of the CPU": lambda x: x[torch.tensor([0, 2])],
    "torch.tensor": lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    "arange like": lambda x: torch.arange(3, device=x.device) + x[:, 0],
    "new_zeros": lambda x: x.new_zeros(3) + torch.zeros_like(x)[:, 0],
    "from the CPU": lambda x: x.copy_(CPU) + CPU.cuda() + CPU.to(x),
    "in place": lambda x: x.mul_(2).relu_(),
    "a view written to": lambda x: x[1:].zero_(),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_cuda_allows_stays_on_the_device(name: str, gpu: PretendedGPU) -> None:
    result = ALLOWED[name](on_gpu(3, 4))
    assert isinstance(result, OnGPU) and result.device == GPU and result.is_cuda


def test_numpy_and_generators(gpu: PretendedGPU) -> None:
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        on_gpu(2).numpy()
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.randn(2, device="cuda", generator=torch.Generator())


WAITS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "item": (lambda x: x.sum().item(), "read of a value"),
    "bool": (lambda x: bool((x > 0).all()), "read of a value"),
    "cpu": (lambda x: x.cpu(), "copy to the host"),
    "tolist": (lambda x: x.tolist(), "copy to the host"),
    "mask": (lambda x: x[x > 0], "boolean index"),
    "nonzero": (lambda x: x.nonzero(), "nonzero"),
    "index": (lambda x: x[torch.tensor([0])], "index from the host"),
    "synchronize": (lambda x: torch.cuda.synchronize(), "synchronisation"),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted(name: str, gpu: PretendedGPU) -> None:
    x, (wait, reason) = on_gpu(3, 4), WAITS[name]
    assert not gpu.waits
    wait(x)
    assert sum(gpu.waits.values()) == gpu.waits_of(reason) == 1


def test_a_copy_that_was_started_comes_when_waited_for(gpu: PretendedGPU) -> None:
    target = torch.empty(3, pin_memory=True).copy_(on_gpu(3), non_blocking=True)
    assert target.isnan().all() and not gpu.waits
    torch.cuda.Event().synchronize()
    assert torch.equal(target, torch.ones(3)) and gpu.waits_of("synchronisation") == 1
    with pytest.raises(RuntimeError, match="Only dense CPU tensors can be pinned"):
        torch.empty(3, pin_memory=True, device="cuda")


def test_what_does_not_wait(gpu: PretendedGPU) -> None:
    x = on_gpu(3, 4)
    before = sum(gpu.uploads.values())
    x[x > 0] = 0.5
    x[torch.tensor([1], device="cuda")] += CPU[:1].pin_memory().to("cuda", non_blocking=True)
    assert not gpu.waits and sum(gpu.uploads.values()) == before + 1  # torch.tensor's


def test_gradients_copies_and_moves(gpu: PretendedGPU) -> None:
    model = small_network().to("cuda")
    assert all(isinstance(p, nn.Parameter) and p.is_cuda for p in model.parameters())
    images = torch.rand(2, 3, 16, 16).to("cuda").requires_grad_()
    (gradient,) = torch.autograd.grad(model(images).sum(), images)
    model(images).sum().backward()
    assert torch.equal(gradient, images.grad) and model[0].weight.grad.is_cuda
    twin = copy.deepcopy(model)
    twin[0].weight.data = twin[0].weight.data.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(twin(images), model(images))
    assert next(twin.cpu().parameters()).device.type == "cpu"


def test_low_precision(gpu: PretendedGPU) -> None:
    layer = nn.Linear(4, 2).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(on_gpu(3, 4)).dtype == torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            assert layer(on_gpu(3, 4)).dtype == torch.float32
    assert layer(on_gpu(3, 4)).dtype == torch.float32


def test_a_graph_runs_what_was_captured(gpu: PretendedGPU) -> None:
    x = on_gpu(3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = (x * 2 + torch.ones_like(x)).relu_()
    x.copy_(torch.arange(3.0))
    graph.replay()
    assert y.cpu().tolist() == [1, 3, 5]
    for host in (lambda: x.sum().item(), lambda: x + CPU[0, :3].to("cuda")):
        with (
            pytest.raises(RuntimeError, match="previous error during capture"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
            pytest.raises(RuntimeError, match="capturing"),
        ):
            host()


def test_a_failed_capture_leaves_behind_what_it_leaves_in_cuda(gpu: PretendedGPU) -> None:
    here, stream, pool = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    with (
        pytest.raises(RuntimeError, match="previous error during capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool, stream=stream),
    ):
        on_gpu(3).sum().item()
    assert torch.cuda.current_stream() is stream is not here and gpu.pools_under_way == [pool]
    with pytest.raises(RuntimeError, match="outside graph capture"):
        torch.randn(3, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        pass
    torch.randn(3, device="cuda")


def test_waits_can_be_refused(gpu: PretendedGPU) -> None:
    torch.cuda.set_sync_debug_mode("error")
    for host in (lambda: on_gpu(3).sum().item(), lambda: CPU[0, :3].to("cuda")):
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
            host()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode(0)
    assert on_gpu(3).sum().item() == 3


def test_nothing_is_left_behind() -> None:
    available, capture = torch.cuda.is_available, torch.cuda.CUDAGraph
    with PretendedGPU():
        x = on_gpu(2)
    assert torch.cuda.is_available is available and torch.cuda.CUDAGraph is capture
    with pytest.raises(RuntimeError, match="outside of its PretendedGPU"):
        x + 1
