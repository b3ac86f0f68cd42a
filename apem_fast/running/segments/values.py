"""A tensor that carries a straight line and an error for each value, and applies the rule of each operation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from apem_fast.running.outputs import ModelOutputError

UNIT = 2.0**-52  # twice the rounding of one operation
SLACK = 4  # operations more than counted: for the roundings of the bounds of roundings
TINY = 1e-290  # above what is lost to underflow

CAN = "convolutions, linear layers, batch norm, pooling, ReLU, ReLU6, leaky ReLU, sums, padding and changes of shape"


RULES: dict[str, Callable[..., Any]] = {}
"""By the name of torch's operation, without `aten::`: what it does to values on segments."""
SHAPES: set[str] = set()
"""Operations that only move values, and are done to each of the three."""


class NotBounded(ModelOutputError):
    """The model has an operation without a rule; the message names it."""


class OnSegments(Tensor):
    """Values of a network on segments: `offset + slope * t`, off by at most `error`, for t in [-1, 1]."""

    offset: Tensor
    slope: Tensor
    error: Tensor
    head: Head | None
    changes: list[int]
    """How often the memory was overwritten, in a list of one that all views of it share. Torch counts no such thing at
    the depth at which operations come here."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, offset: Tensor, slope: Tensor, error: Tensor) -> Self:
        return torch.Tensor._make_wrapper_subclass(
            cls, offset.shape, strides=offset.stride(), dtype=offset.dtype, device=offset.device
        )

    def __init__(self, offset: Tensor, slope: Tensor, error: Tensor):
        self.offset, self.slope, self.error = offset, slope, error
        self.head, self.changes = None, [0]

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"OnSegments({self.offset!r}, {self.slope!r}, {self.error!r})"

    @property
    def reach(self) -> Tensor:
        """How far a value may be from its offset."""
        return self.slope.abs() + self.error

    @property
    def greatest(self) -> Tensor:
        """The greatest absolute value."""
        return self.offset.abs() + self.reach

    def overwrite(self, other: OnSegments) -> None:
        """Takes on other values in place, for whoever looks at the same memory too."""
        for own, new in zip((self.offset, self.slope, self.error), (other.offset, other.slope, other.error)):
            own.copy_(new)
        self.changes[0] += 1

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in SHAPES:
            return each_of_three(func, args, kwargs)
        if name in RULES and "out" not in kwargs:
            return RULES[name](*args, **kwargs)
        if name.endswith("_") and name[:-1] in RULES and isinstance(args[0], OnSegments):
            new = RULES[name[:-1]](*args, **kwargs)
            if new.shape == args[0].shape:
                args[0].overwrite(new)
                return args[0]
        result = func.decompose(*args, **kwargs)  # where it is made of others, as `linear` is
        if result is NotImplemented:
            raise refused(name)
        return result


@dataclass(frozen=True)
class Head:
    """What a linear layer's outputs were made of, so that differences of outputs can be bounded more closely."""

    inputs: OnSegments
    weight: Tensor  # (outputs, inputs)
    bias: Tensor | None
    changes: int  # of the inputs' memory until then


def refused(name: str) -> NotBounded:
    """The refusal of an operation, with the layer that it was met in."""
    frame, layer = sys._getframe(1), ""
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            layer = type(owner).__name__
            break
        frame = frame.f_back  # type: ignore[assignment]
    where = f"{name} in {layer}" if layer else name
    return NotBounded(f'model must be made of {CAN} for search="certified" (got {where})')


def widened(offset: Tensor, slope: Tensor, error: Tensor, terms: int, size: Tensor) -> OnSegments:
    """Fresh values, widened by the roundings of so many terms whose absolute values sum to `size`."""
    rounding = (terms + SLACK) * UNIT
    error = error * (1 + rounding) + (rounding * size + TINY)
    # Alike in memory, so that whatever is a view of one is a view of all.
    slope, error = (_laid_out_as(offset, t) for t in (slope, error))
    return OnSegments(offset, slope, error)


def _laid_out_as(like: Tensor, t: Tensor) -> Tensor:
    return t if t.shape == like.shape and t.stride() == like.stride() else torch.empty_like(like).copy_(t)


def is_constant(*values: object) -> bool:
    return not any(isinstance(value, OnSegments) for value in values)


def each_of_three(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on each of the three."""
    v = args[0]
    if not isinstance(v, OnSegments):
        raise refused(func._schema.name.removeprefix("aten::"))
    parts = [func(part, *args[1:], **kwargs) for part in (v.offset, v.slope, v.error)]
    made = [OnSegments(*parts)] if isinstance(parts[0], Tensor) else [OnSegments(*one) for one in zip(*parts)]
    for one in made:
        one.changes = v.changes  # whether or not this operation makes a view
    return made[0] if isinstance(parts[0], Tensor) else made
