"""Work that waits for a device, written so that other work can go on meanwhile: generators that yield where they
wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

Waiting = Generator[None, None, T]
"""Yields wherever the device is busy with what was asked of it; returns the result."""


def result_of(work: Waiting[T]) -> T:
    """The result, waiting wherever the work waits."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def in_turns(lanes: Iterable[Waiting[None]]) -> None:
    """Runs them all to their ends: where one waits, the next goes on."""
    running = deque(lanes)
    while running:
        lane = running.popleft()
        try:
            next(lane)
        except StopIteration:
            continue
        running.append(lane)
