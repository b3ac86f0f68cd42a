"""The name at the head of an error message: the public function that the user called, wherever the check is made."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

HOME = Path(__file__).parent
BETWEEN = (contextlib.__file__, functools.__file__, "<string>")  # decorators, and what dataclasses make

_CALLER: ContextVar[str | None] = ContextVar("caller", default=None)


@contextmanager
def said_by(name: str) -> Iterator[None]:
    """Sentences begin with this name until the block ends, unless a function around it has given its own. Also a
    decorator, as whatever `contextmanager` makes.

    Args:
        name: of the public function, class or method; empty for sentences that begin with nothing.
    """
    token = None if _CALLER.get() is not None else _CALLER.set(name)
    try:
        yield
    finally:
        if token is not None:
            _CALLER.reset(token)


def sentence(text: str) -> str:
    """The text of an error or a warning, with the name of the called function before it."""
    name = _CALLER.get()
    if name is None:
        name = "apem_fast"
    return f"{name}: {text}" if name else text


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the name of the called function, at the user's line that called this package."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(HOME):
        frame, depth = frame.f_back, depth + 1
        while frame.f_back is not None and frame.f_code.co_filename in BETWEEN:
            frame, depth = frame.f_back, depth + 1
    warnings.warn(sentence(text), category, stacklevel=depth)
