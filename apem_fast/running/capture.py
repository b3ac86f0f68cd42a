"""Captures functions of one tensor as CUDA graphs, so that one call starts all their kernels."""

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
        """The function of these values, which may be in pinned memory. The next replay overwrites the result."""
        self.input.copy_(values, non_blocking=True)
        self._graph.replay()
        return self._results

    def __call__(self, values: Tensor) -> tuple[Tensor, ...]:
        """The same, as a copy that later replays do not overwrite."""
        return tuple(result.clone() for result in self.replay(values))


def captured(function: Function, static: Tensor, stream: torch.cuda.Stream, pool: Pool) -> Captured:
    """The function for tensors with the layout of `static`, captured on `stream` with its memory in `pool`.

    The graph will read from `static`. During the capture it must not hold values with which the graph's answer will be
    compared: a capture does not see kernels on the libraries' own streams; the right answer would then be there by
    chance, and never change again.

    Graphs that run side by side need a stream and a pool each, because the libraries' scratch memory belongs to the
    stream. Graphs that never do should share both, since memory that one stream has used is not used for another.

    Raises whatever the function raises, or RuntimeError if it cannot be captured. The process is then as before: its
    current stream, random generators and allocator do not stay in capture mode.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(static.device):  # a capture must not initialise another device
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            function(static)  # the allocations and choices of a first call must not be captured
            with _waits_refused():  # a failed capture is harder to undo than a failed call
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
    """Within the block it is an error if the host waits for a GPU, as with `.item()`."""
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

    If CUDA declares a capture invalid, some versions of torch do not clean up: the allocator continues as during a
    capture, and the random generators refuse to draw. The allocator is reset. The generators leave capture mode at the
    end of any successful capture, so an empty one is made.
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
    """Warns once that something faster failed and that the plain model runs instead."""
    reason = str(error).strip().splitlines()
    warnings.warn(
        sentence(f"{doing} failed, the plain model runs instead ({reason[0] if reason else type(error).__name__})"),
        RuntimeWarning,
        stacklevel=3,
    )
