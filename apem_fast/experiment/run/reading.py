"""Reads photographs in threads and resizes them: those of the next block while a GPU measures one.

Pillow releases the interpreter lock while it decodes and resizes, so threads suffice. On a CPU photographs are read
when they are needed: its cores are busy, and each thread that calls torch leaves OpenMP workers behind. With more
workers than cores, parallel loops no longer wait actively for one another (seen: float64 forward passes of
EfficientNet-Lite0 nine times slower on two cores).
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
    """Reads photographs ahead. It is a context manager; on closing, waiting reads are cancelled.

    Args:
        pixels: a function that reads a photograph at the network's size.
        threads: how many run at once; 0 reads in the calling thread, and nothing ahead. By default as many as the
            machine has processors, but at most eight.
    """

    def __init__(self, pixels: Callable[[Image.Image], Tensor], threads: int | None = None):
        self._pixels = pixels
        self._threads = min(MOST_THREADS, os.cpu_count() or 1) if threads is None else threads
        self._under_way: dict[str, Future[Tensor]] = {}
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def beside(cls, device: str, pixels: Callable[[Image.Image], Tensor]) -> Reader:
        """A reader that does not compete with the device for processors."""
        return cls(pixels, threads=0 if device.startswith("cpu") else None)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._threads, "apem-reading") if self._threads else None
        return self

    def __exit__(self, *exception: object) -> None:
        self._under_way.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def ahead(self, photographs: Sequence[Photograph]) -> None:
        """Starts to read these, after those that were requested before."""
        if self._pool is None:
            return
        for one in photographs:
            if one.name not in self._under_way:
                self._under_way[one.name] = self._pool.submit(self._read, one)

    def read(self, photograph: Photograph) -> Tensor:
        """The pixels of a photograph, (3, H, W). Waits until they are read.

        Raises:
            OSError: the file is missing, damaged or not an image.
        """
        if self._pool is None:
            return self._read(photograph)
        self.ahead([photograph])
        return self._under_way.pop(photograph.name).result()

    def _read(self, photograph: Photograph) -> Tensor:
        return self._pixels(photograph.open())
