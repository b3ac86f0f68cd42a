"""A way past the queue of a GPU, for a little work whose answer is wanted before the batches that are in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FIRST = -1  # a stream's priority: its kernels are started before those of others that wait as well


class Beside:
    """A stream of high priority on `device`; elsewhere everything is done at once anyway.

    What is done in it may use what was there when `may_use_what_there_is` was last called, and what it makes itself.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._there: torch.cuda.Event | None = None

    def may_use_what_there_is(self) -> None:
        """Work beside the batches will wait for what the current stream has been asked up to now."""
        if self._device.type == "cuda":
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(self._device))

    @contextmanager
    def the_batches(self) -> Iterator[None]:
        """Inside, what is asked of the device does not queue behind the current stream's work."""
        if self._device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device, priority=FIRST)
        if self._there is not None:
            self._stream.wait_event(self._there)
        with torch.cuda.stream(self._stream):
            yield

    def close(self) -> None:
        """Makes later work of the current stream wait for what was done here, whose memory it may then free."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
