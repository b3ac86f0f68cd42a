"""Batch size and memory format of attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm.auto import tqdm

from apem_fast.running import batching
from apem_fast.running.layouts import WeightLayouts
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.results import AttackResult

VALUES = 2**19 + 2**17  # values in a batch on a CPU: larger ones do not fit its caches, smaller ones leave it idle
FEWEST, MOST = 8, 64  # pairs in a batch


def usual_batch(images: Tensor) -> int:
    """How many pairs run together by default.

    It only depends on the images' size and device, so that results do not depend on the speed of the machine.
    """
    if images.device.type != "cpu" or not len(images):
        return MOST
    return max(FEWEST, min(MOST, VALUES // images[0].numel()))


def in_batches(
    run: Callable[[slice], AttackResult], count: int, batch_size: int, progress: str | None
) -> list[AttackResult]:
    """Calls `run` on consecutive rows. Running out of memory halves the batch; no computed result is lost."""
    if batch_size < 1:
        raise ValueError(f"attack: batch_size must be at least 1 (got {batch_size})")
    if not count:
        return [run(slice(0, 0))]
    results: list[AttackResult] = []
    with tqdm(total=count, desc=progress, disable=progress is None, leave=False) as bar:
        for last, result in batching.in_batches(lambda first, last: run(slice(first, last)), count, batch_size):
            results.append(result)
            bar.update(last - bar.n)
    return results


@contextmanager
def channels_last_on_cpu(ranker: Ranker, first: Tensor, second: Tensor) -> Iterator[torch.memory_format]:
    """The memory format for the images, in which the ranker's weights are too within the block.

    On a CPU it is channels-last, unless the ranker fails with it, for example because it takes a `view` of its input.
    Afterwards the user's weights are as before.
    """
    if first.device.type != "cpu" or ranker.device.type != "cpu":
        yield torch.contiguous_format
        return
    weights = WeightLayouts(ranker)
    weights.begin()
    try:
        memory_format = torch.channels_last
        weights.use(memory_format)
        try:
            with torch.no_grad():
                ranker.rank(*(images[:1].contiguous(memory_format=memory_format) for images in (first, second)))
        except RuntimeError:
            memory_format = torch.contiguous_format
            weights.use(None)
        yield memory_format
    finally:
        weights.end()
