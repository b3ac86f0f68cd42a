"""Functions of one tensor as CUDA graphs: captured once, then all their kernels are started by one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from apem_fast.callers import sentence

Function = Callable[[Tensor], tuple[Tensor, ...]]
Pool = tuple[int, int]


class Captured:
    """A function as a graph, which reads `input`."""

    def __init__(self, graph: torch.cuda.CUDAGraph, static: Tensor, results: tuple[Tensor, ...]):
        self.input = static
        self._graph, self._results = graph, results

    def replay(self, values: Tensor) -> tuple[Tensor, ...]:
        """The function of these values, which may lie in pinned memory. The next replay overwrites what is returned."""
        self.input.copy_(values, non_blocking=True)
        self._graph.replay()
        return self._results

    def __call__(self, values: Tensor) -> tuple[Tensor, ...]:
        """The same, to be kept."""
        return tuple(result.clone() for result in self.replay(values))


def captured(function: Function, static: Tensor, stream: torch.cuda.Stream, pool: Pool) -> Captured:
    """The function for tensors laid out like `static`, captured on `stream` with its memory in `pool`.

    `static` is what the graph will read from. Its values while it is captured must not be some with which its answer
    will be compared: kernels that a capture cannot see, of libraries with streams of their own, would leave the right
    answer where it is, and it would never change again.

    Graphs that are to run side by side need a stream and a pool each: what the libraries scratch in while they compute
    belongs to the stream. Those that never do should share both; memory that one stream has used serves no other.

    Raises whatever the function raises, or RuntimeError where it cannot be captured. The process is as before then: its
    current stream, its random generators and its allocator do not stay in capture mode.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(static.device):  # a capture waits for the current device, and may not wake up another one
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            function(static)  # what a first call allocates, chooses and loads must not be captured
            with _waits_refused():  # a capture that fails leaves more behind than a call that does
                function(static)
        here.wait_stream(stream)
        handle: Any = pool  # a type that torch does not name in public
        try:
            # Other threads of the process may go on using the device meanwhile.
            with torch.cuda.graph(graph, pool=handle, stream=stream, capture_error_mode="thread_local"):
                results = function(static)
        except BaseException:
            _leave_capture_mode(graph, stream, pool)
            raise
        finally:
            torch.cuda.set_stream(here)  # `torch.cuda.graph` does not where a capture fails
    return Captured(graph, static, results)


@contextmanager
def _waits_refused() -> Iterator[None]:
    """Inside, it is an error where the host waits for a GPU, as `.item()` does."""
    before = torch.cuda.get_sync_debug_mode()
    _set_sync_debug_mode("error")
    try:
        yield
    finally:
        _set_sync_debug_mode(before)


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():  # that it is a prototype which does not see every wait
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)


def _leave_capture_mode(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Pool) -> None:
    """Undoes what a failed capture leaves behind.

    Where CUDA declares a capture invalid, some versions of torch stop there: the allocator goes on as if a capture were
    under way, and the random generators refuse to draw. The allocator is told; the generators leave capture mode at the
    end of any capture that succeeds, so an empty one is made.
    """
    torch.cuda.set_stream(stream)
    if torch.cuda.is_current_stream_capturing():  # the function had changed the current stream
        with suppress(RuntimeError):
            graph.capture_end()
    with suppress(RuntimeError, AttributeError):  # "not currently recording": nothing was left behind
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    with suppress(RuntimeError):
        nothing = torch.zeros(1, device=stream.device)
        with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
            nothing.zero_()


def warn_of_way_back(doing: str, error: Exception) -> None:
    """Says once that something faster was tried and that the plain model runs instead."""
    reason = str(error).strip().splitlines()
    warnings.warn(
        sentence(f"{doing} failed, the plain model runs instead ({reason[0] if reason else type(error).__name__})"),
        RuntimeWarning,
        stacklevel=3,
    )
