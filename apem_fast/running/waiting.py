"""Work that waits for a device, as generators that yield while they wait, so that other work can run."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

Waiting = Generator[None, None, T]
"""A generator that yields while the device is busy, and returns the result."""


def result_of(work: Waiting[T]) -> T:
    """The result of the work. Waits for it."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def in_turns(lanes: Iterable[Waiting[None]]) -> None:
    """Runs all of them to their ends; while one waits, the next one continues."""
    running = deque(lanes)
    while running:
        lane = running.popleft()
        try:
            next(lane)
        except StopIteration:
            continue
        running.append(lane)
