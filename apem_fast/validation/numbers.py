"""Numbers of any kind, of which floats and ints are made: float64 here and nowhere else."""

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
    return type(value)._type_name__


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def number(name: str, value: object) -> float:
    """A real number of any kind (int, float, Fraction, a NumPy scalar, a tensor of no dimensions) as a float: whatever
    is computed with it later is computed in float64."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(sentence(f"{name} must be a number (got {type_name(value)})"))
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]  # reals can be compared


def plain(value: Any) -> Any:
    """A number of any kind as an int or a float; anything else as it is, to be refused by whoever knows its name."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def make_numbers_plain(record: Any) -> None:
    """In a frozen dataclass: what is computed with its numbers, compared or written down is an int or a float.

    Raises:
        TypeError: another thing is where a float is declared.
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
    """A whole number of any kind as an int."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(sentence(f"{name} must be {kind} (got {type_name(value)})"))
    if value < least:
        raise ValueError(sentence(f"{name} must be at least {least} (got {value})"))
    return int(value)


def whole_or_none(name: str, value: object) -> int | None:
    """The same, or None."""
    return None if value is None else whole(name, value, kind="a whole number or None")


def choice(name: str, value: object, known: Iterable[str]) -> None:
    """One of a few words."""
    known = tuple(known)
    if value not in known:
        raise ValueError(sentence(f"{name} must be one of {', '.join(known)} (got {value!r})"))
