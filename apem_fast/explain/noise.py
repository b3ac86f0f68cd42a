"""Random numbers drawn ahead by threads, while a GPU works on those that were drawn before.

Each sample has a generator of its own on the CPU, so it is the same on every device and whoever draws it. One image of
3 x 224 x 224 takes a core about as long to draw as a fast GPU takes for its forward and backward pass. On a CPU they
are drawn where they are asked for: its cores have work already.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch
from torch import Tensor

MOST_THREADS = 8


class Drawing:
    """Draws standard normal numbers for a model on `device`. A context manager: when it closes, what has not begun is
    not begun."""

    def __init__(self, device: torch.device):
        self._beside_a_gpu = device.type == "cuda"
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._beside_a_gpu:
            self._pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), "apem-noise")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def blocks(self, shape: Sequence[int], wanted: Iterable[Sequence[torch.Generator]]) -> Iterator[Tensor]:
        """For each sequence of generators their numbers, (len, *shape) float32 on the CPU. While one block is used the
        next one is under way."""
        under_way: tuple[Tensor, list[Future[None]]] | None = None
        for generators in wanted:
            following = self._begun(tuple(shape), generators)
            if under_way is not None:
                yield _done(*under_way)
            under_way = following
        if under_way is not None:
            yield _done(*under_way)

    def _begun(
        self, shape: tuple[int, ...], generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, list[Future[None]]]:
        size = (len(generators), *shape)
        block = torch.empty(size, dtype=torch.float32, device="cpu", pin_memory=self._beside_a_gpu)
        if self._pool is None:
            for row, generator in zip(block, generators):
                _draw(row, generator)
            return block, []
        return block, [self._pool.submit(_draw, row, generator) for row, generator in zip(block, generators)]


def _draw(row: Tensor, generator: torch.Generator) -> None:
    row.normal_(generator=generator)


def _done(block: Tensor, futures: list[Future[None]]) -> Tensor:
    for future in futures:
        future.result()
    return block
