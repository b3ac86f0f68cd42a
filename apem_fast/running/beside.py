"""Runs a little work on a GPU before the batches that are queued there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FIRST = -1  # a stream's priority: its kernels start before waiting kernels of other streams


class Beside:
    """A stream of high priority on `device`; on a CPU it has no effect.

    Work in it may use the results of work that was queued before the last call of `may_use_what_there_is`, and its own.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._there: torch.cuda.Event | None = None

    def may_use_what_there_is(self) -> None:
        """Work beside the batches will wait for everything that is queued on the current stream now."""
        if self._device.type == "cuda":
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(self._device))

    @contextmanager
    def the_batches(self) -> Iterator[None]:
        """Within the block, work on the device does not wait for the current stream's work."""
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
        """Makes later work of the current stream wait for the work here, whose memory it may then free."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
