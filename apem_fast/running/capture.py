"""Functions of one tensor as CUDA graphs: captured once, then all their kernels are started by one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], tuple[Tensor, ...]]

WARM_UPS = 2  # what the first calls allocate and choose must not be captured


def captured(function: Function, example: Tensor, stream: torch.cuda.Stream, pool: object = None) -> Function:
    """The function for tensors laid out like the example, captured on a stream of its own.

    Graphs that are to run side by side need a stream each to be captured on: what the libraries scratch in while they
    compute belongs to the stream. Those that never do may share a memory pool.
    """
    # Not of the example's values, with which the answer will be compared: kernels that a capture cannot see, of
    # libraries with streams of their own, would leave the right answer where it is, and it would never change again.
    static = torch.zeros_like(example)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(example.device):  # a capture waits for the current device, and may not wake up another one
        here = torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function(static)
        here.wait_stream(stream)
        # Other threads of the process may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            results = function(static)

    def replay(values: Tensor) -> tuple[Tensor, ...]:
        static.copy_(values)
        graph.replay()
        return tuple(result.clone() for result in results)  # the next replay overwrites them

    return replay


def warn_of_way_back(doing: str, error: Exception) -> None:
    """Says once that something faster was tried and that the plain model runs instead."""
    reason = str(error).strip().splitlines()
    warnings.warn(
        f"apem: {doing} failed, the plain model runs instead ({reason[0] if reason else type(error).__name__})",
        RuntimeWarning,
        stacklevel=3,
    )
