"""Checks of numbers and choices. Numbers of any type become Python's floats (float64) and ints here, and only here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor

from apem_fast.callers import said_by, sentence


def type_name(value: object) -> str:
    return type(value).__name__


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def number(name: str, value: object) -> float:
    """A real number of any type (int, float, Fraction, NumPy scalar, tensor without dimensions) as a float.

    Later arithmetic with it is then in float64.
    """
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(sentence(f"{name} must be a number (got {type_name(value)})"))
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]  # reals can be compared


def plain(value: Any) -> Any:
    """A number of any type as an int or a float; anything else unchanged, for the caller to refuse by name."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def make_numbers_plain(record: Any) -> None:
    """Replaces the numbers in a frozen dataclass by ints and floats, which compute, compare and print as such.

    Raises:
        TypeError: a field that is declared as a float holds something else.
    """
    name = getattr(record, "name", None)
    with said_by(name) if isinstance(name, str) else nullcontext():
        for one in dataclasses.fields(record):
            value = getattr(record, one.name)
            made = tuple(map(plain, value)) if type(value) is tuple else plain(value)
            if one.type in ("float", float):
                number(one.name, made)
            object.__setattr__(record, one.name, made)


def positive(name: str, value: object) -> float:
    converted = number(name, value)
    if not (converted > 0 and math.isfinite(converted)):
        raise ValueError(sentence(f"{name} must be positive and finite (got {converted:g})"))
    return converted


def whole(name: str, value: object, least: int = 1, kind: str = "a whole number") -> int:
    """A whole number of any type as an int."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(sentence(f"{name} must be {kind} (got {type_name(value)})"))
    if value < least:
        raise ValueError(sentence(f"{name} must be at least {least} (got {value})"))
    return int(value)


def whole_or_none(name: str, value: object) -> int | None:
    """A whole number of any type as an int, or None."""
    return None if value is None else whole(name, value, kind="a whole number or None")


def choice(name: str, value: object, known: Iterable[str]) -> None:
    """Raises unless the value is one of a few known words."""
    known = tuple(known)
    if value not in known:
        raise ValueError(sentence(f"{name} must be one of {', '.join(known)} (got {value!r})"))
