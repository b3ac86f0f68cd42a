"""What `progress=` means everywhere: a function that is called on the way, or True for a line on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from apem_fast.callers import sentence

Told = TypeVar("Told", bound=Callable[..., None])

SECONDS = 0.2  # between two writings of the line


class ProgressLine:
    """Writes "DONE of ALL", and the probes so far where it is told of them, over itself until all is done."""

    def __init__(self) -> None:
        self._next = 0.0
        self._width = 0

    def __call__(self, done: int, total: int, probes: int | None = None) -> None:
        now, finished = time.monotonic(), done >= total
        if now < self._next and not finished:
            return
        self._next = now + SECONDS
        text = f"{done:,} of {total:,}" + ("" if probes is None else f", {probes:,} probes")
        sys.stderr.write("\r" + text.ljust(self._width) + ("\n" if finished else ""))
        sys.stderr.flush()
        self._width = 0 if finished else len(text)


def shown(progress: Told | bool | None) -> Told | ProgressLine | None:
    """The function to call: the user's, a line on standard error for True, None for none.

    Raises:
        TypeError: it is anything else. Found out at the beginning, and not when the first round is done.
    """
    if progress is None or progress is False:
        return None
    if progress is True:
        return ProgressLine()
    if not callable(progress):
        raise TypeError(sentence(f"progress must be a function, True or None (got {type(progress).__name__})"))
    return progress
