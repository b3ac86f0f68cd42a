"""Which batch size and memory format this model runs fastest with on this machine: measured, not assumed.

On a CPU a larger batch can be several times slower per image, and channels-last several times faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Format = torch.memory_format

CPU_SIZES = (1, 2, 4, 8, 16)
CUDA_SIZES = (16, 32, 64, 128, 256)
ENOUGH_GAIN = 0.95  # a larger batch must be worth its memory


@dataclass(frozen=True)
class BatchPlan:
    """How many model inputs enter one forward pass, and in which memory format."""

    size: int
    memory_format: Format

    def halved(self) -> BatchPlan:
        return replace(self, size=max(1, self.size // 2))


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own; the CPU's allocator only a message."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def measured_plan(
    forward: Callable[[Tensor], object],
    prepared: Callable[[Format], AbstractContextManager[None]],
    image: Tensor,
    most: int,
    formats: Sequence[Format],
    budget: float = 0.7,
) -> BatchPlan:
    """The candidate with the least seconds per image, each tried twice, all within about `budget` seconds.

    Args:
        forward: runs the model on (batch, C, H, W).
        prepared: lays the model's weights out in a format while it is entered.
        image: (1, C, H, W), repeated to make the batches; values matter little, sparsity of activations does.
        most: no batch larger than this, however fast: there are not more probes to run.
    """
    on_cuda = image.device.type == "cuda"
    begin = time.perf_counter()
    best, least = BatchPlan(1, formats[0]), float("inf")
    sizes = [size for size in (CUDA_SIZES if on_cuda else CPU_SIZES) if size <= most] or [max(1, most)]
    for memory_format in formats:
        previous = float("inf")
        with prepared(memory_format):
            for size in sizes:
                batch = image.expand(size, -1, -1, -1).contiguous(memory_format=memory_format)
                seconds = _seconds_per_image(forward, batch, on_cuda)
                if seconds is None:
                    break
                if seconds < ENOUGH_GAIN * least:
                    best, least = BatchPlan(size, memory_format), seconds
                if seconds > 1.2 * previous or time.perf_counter() - begin > budget:
                    break  # past the optimum of this format, or out of time
                previous = seconds
        if time.perf_counter() - begin > budget:
            break
    return best


def _seconds_per_image(forward: Callable[[Tensor], object], batch: Tensor, on_cuda: bool) -> float | None:
    """The better of two runs after a warm-up; None if the batch does not fit the memory."""
    least = float("inf")
    try:
        for run in range(3):
            begin = time.perf_counter()
            forward(batch)
            if on_cuda:
                torch.cuda.synchronize(batch.device)
            if run:
                least = min(least, time.perf_counter() - begin)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    return least / len(batch)
