"""The base classes of results: they compare by value, print in one line, and show as a small table in notebooks.

A result is a frozen dataclass that holds tensors. With the methods that Python generates, `==` would raise, because
comparing tensors gives a tensor and not a bool, and `print` would show every number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from apem_fast.extras import extra

if TYPE_CHECKING:
    import pandas

ROWS_SHOWN = 8  # of a table in a notebook
FEW = 4  # up to so many values are written out in a line of text


class Result:
    """A frozen dataclass of tensors and plain values; declare it with `eq=False, repr=False`.

    Two results are equal if their class and all their values are. Tensors are equal if type, shape and numbers are, on
    any device, and NaN equals NaN. Equal results have equal hashes, unless somebody writes into their tensors.
    """

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return _same(_fields(self), _fields(other))

    def __hash__(self) -> int:
        return hash((type(self), _hashable(_fields(self))))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(self._said())}>"

    def _said(self) -> list[str]:
        """The parts of the one-line text, the most important first."""
        return [f"{name}={short(value)}" for name, value in _fields(self).items()]

    def _repr_html_(self) -> str:
        return _html(type(self).__name__, [], ("", "value"), [[n, short(v)] for n, v in _fields(self).items()])


class TableResult(Result):
    """A result with one row for each image."""

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Its columns by name, tensors on the CPU."""
        raise NotImplementedError

    def to_dataframe(self) -> pandas.DataFrame:
        """A table with one row for each image (and stage, if there are several) and one column for each quantity."""
        with extra("experiment", "to_dataframe"):
            import pandas

        return pandas.DataFrame({name: _plain(values) for name, values in self._columns().items()})

    def _repr_html_(self) -> str:
        columns = self._columns()
        count = len(next(iter(columns.values())))
        rows = [
            [str(row), *(_cell(values[row]) for values in columns.values())] for row in range(min(count, ROWS_SHOWN))
        ]
        return _html(type(self).__name__, self._said(), ("", *columns), rows, count - len(rows))


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 image, 2 images."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def censored(*flipped: Tensor) -> str:
    """How many of the rays did not flip, in words."""
    rays = sum(one.numel() for one in flipped)
    return f"{sum(int((~one).sum()) for one in flipped):,} of {counted(rays, 'ray')} censored"


def short(value: object) -> str:
    """A value in a few words; a tensor of many values as its shape and the range of its values."""
    if isinstance(value, Tensor):
        return _short_tensor(value.detach())
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {short(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list) and len(value) > FEW:
        return f"{len(value):,} of {type(value[0]).__name__}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(short, value)) + ")"
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    return str(value) if isinstance(value, Result) else repr(value)


def _short_tensor(tensor: Tensor) -> str:
    if tensor.dim() <= 1 and tensor.numel() <= FEW:
        return "[" + ", ".join(map(_cell, tensor.flatten())) + "]"
    shape = " x ".join(map(str, tensor.shape))
    numbers = tensor[~tensor.isnan()] if tensor.is_floating_point() else tensor
    if not numbers.numel():
        return f"({shape})"
    return f"({shape}) from {_cell(numbers.min())} to {_cell(numbers.max())}"


def _fields(result: object) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}  # type: ignore[arg-type]


def _plain(values: Tensor | Sequence[Any]) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        return type(one) is type(other) and _same_numbers(torch.as_tensor(one), torch.as_tensor(other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if _is_plain_dataclass(one):
        return type(one) is type(other) and _same(_fields(one), _fields(other))
    return bool(one == other)


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = one.detach(), other.detach().to(one.device)
    equal = one == other
    if one.is_floating_point():
        equal = equal | (one.isnan() & other.isnan())
    return bool(equal.all())


def _hashable(value: Any) -> Hashable:
    """Equal for what `_same` calls the same."""
    if isinstance(value, Tensor | np.ndarray):
        return _digest(torch.as_tensor(value))
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(one)) for key, one in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(_hashable, value))
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if _is_plain_dataclass(value):
        return type(value), _hashable(_fields(value))
    return value if isinstance(value, Hashable) else type(value).__name__


def _digest(tensor: Tensor) -> Hashable:
    values = tensor.detach().cpu().reshape(-1)
    if values.is_floating_point():
        values = (values + 0.0).masked_fill(values.isnan(), torch.nan)  # one 0 and one NaN: both have several patterns
    content = hashlib.blake2b(values.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=8)
    return str(tensor.dtype), tuple(tensor.shape), content.digest()


def _is_plain_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type | Result)


# -- in a notebook -----------------------------------------------------------------------------------------------


def _cell(value: Any) -> str:
    """One value of a table."""
    value = value.item() if isinstance(value, Tensor | np.generic) else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _html(title: str, said: Sequence[str], heads: Sequence[str], rows: Sequence[Sequence[str]], more: int = 0) -> str:
    """A caption and a table, without style sheets, scripts or links, since a notebook has its own style."""
    caption = f"<b>{escape(title)}</b>" + (f": {escape(', '.join(said))}" if said else "")
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(
        "<tr>" + f"<th>{escape(row[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    last = f"<p>and {more:,} more</p>" if more else ""
    return f"<div><p>{caption}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{last}</div>"
