"""Photographs opened and brought to a network's size by threads: the next block's while one is measured.

Pillow lets go of the interpreter while it decodes and resizes, so threads are enough. What is read is the same.
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
        threads: at once; by default as many as the machine has processors, but not more than eight.
    """

    def __init__(self, pixels: Callable[[Image.Image], Tensor], threads: int | None = None):
        self._pixels = pixels
        self._threads = threads or min(MOST_THREADS, os.cpu_count() or 1)
        self._under_way: dict[str, Future[Tensor]] = {}

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self._threads, "apem-reading")
        return self

    def __exit__(self, *exception: object) -> None:
        self._under_way.clear()
        self._pool.shutdown(cancel_futures=True)

    def ahead(self, photographs: Sequence[Photograph]) -> None:
        """Begins to read these, behind those that were asked for before."""
        for one in photographs:
            if one.name not in self._under_way:
                self._under_way[one.name] = self._pool.submit(self._read, one)

    def read(self, photograph: Photograph) -> Tensor:
        """Its pixels, (3, H, W), waiting for them.

        Raises:
            OSError: the file is missing, damaged or not an image.
        """
        self.ahead([photograph])
        return self._under_way.pop(photograph.name).result()

    def _read(self, photograph: Photograph) -> Tensor:
        return self._pixels(photograph.open())
