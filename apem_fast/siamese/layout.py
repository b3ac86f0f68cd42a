"""How pairs are attacked together: how many at a time, and in which memory format."""

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

VALUES = 2**19 + 2**17  # in a batch on a CPU: larger ones leave its caches, smaller ones leave it idle
FEWEST, MOST = 8, 64  # pairs in a batch


def usual_batch(images: Tensor) -> int:
    """How many pairs run together where the user does not say. It depends on nothing but their size and device, so
    that a result does not depend on how fast the machine was."""
    if images.device.type != "cpu" or not len(images):
        return MOST
    return max(FEWEST, min(MOST, VALUES // images[0].numel()))


def in_batches(
    run: Callable[[slice], AttackResult], count: int, batch_size: int, progress: str | None
) -> list[AttackResult]:
    """`run` over consecutive rows. Out of memory halves the batch and goes on; nothing computed is lost."""
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
    """The memory format to lay images out in; inside, the ranker's weights lie in it too.

    On a CPU it is channels-last, unless the ranker fails with it, as one does that takes a `view` of its input. The
    user's weights are where they were afterwards.
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
