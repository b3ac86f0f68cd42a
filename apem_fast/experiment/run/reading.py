"""Photographs opened and brought to a network's size by threads: the next block's while a GPU measures one.

Pillow lets go of the interpreter while it decodes and resizes, so threads are enough. What is read is the same.
On a CPU they are read where they are asked for: its cores have work already, and each thread that calls torch leaves
OpenMP workers behind, with which there are more than cores, so that parallel loops no longer wait actively for one
another (seen: float64 forward passes of EfficientNet-Lite0 nine times slower on two cores).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from PIL import Image
from torch import Tensor

from apem_fast.experiment.inputs.photographs import Photograph

MOST_THREADS = 8


class Reader:
    """Reads photographs ahead. A context manager: when it closes, what has not begun is not begun.

    Args:
        pixels: brings a picture to the network's size.
        threads: at once; 0 reads in the calling thread, nothing ahead; by default as many as the machine has
            processors, but not more than eight.
    """

    def __init__(self, pixels: Callable[[Image.Image], Tensor], threads: int | None = None):
        self._pixels = pixels
        self._threads = min(MOST_THREADS, os.cpu_count() or 1) if threads is None else threads
        self._under_way: dict[str, Future[Tensor]] = {}
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def beside(cls, device: str, pixels: Callable[[Image.Image], Tensor]) -> Reader:
        """One that does not take from the device what it computes with."""
        return cls(pixels, threads=0 if device.startswith("cpu") else None)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._threads, "apem-reading") if self._threads else None
        return self

    def __exit__(self, *exception: object) -> None:
        self._under_way.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def ahead(self, photographs: Sequence[Photograph]) -> None:
        """Begins to read these, behind those that were asked for before."""
        if self._pool is None:
            return
        for one in photographs:
            if one.name not in self._under_way:
                self._under_way[one.name] = self._pool.submit(self._read, one)

    def read(self, photograph: Photograph) -> Tensor:
        """Its pixels, (3, H, W), waiting for them.

        Raises:
            OSError: the file is missing, damaged or not an image.
        """
        if self._pool is None:
            return self._read(photograph)
        self.ahead([photograph])
        return self._under_way.pop(photograph.name).result()

    def _read(self, photograph: Photograph) -> Tensor:
        return self._pixels(photograph.open())
