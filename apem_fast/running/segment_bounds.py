"""Bounds of all that a model computes on whole segments of a ray, by running the model's own code once on them.

A segment is a straight line of inputs, x + slope * t with t in [-1, 1]. Every value v of the network is kept as three:

    |v(t) - offset - slope * t| <= error    for each t in [-1, 1]

Sums of products pass offset and slope on as they are; a ReLU or a maximum that may change its mind within the segment
adds to the error. v(t) is what any float64 computation says, in whichever order it adds: each operation widens the
error by what rounding can do in any order, both to v and to these three numbers themselves. Convolutions by Fourier
transforms or Winograd's method, which no float64 convolution on a CPU is, would round otherwise.

`OnSegments` is the tensor that carries the three. A model runs on it as on any other, its own `forward`, loops and
functions included; each operation of torch that it comes to has a rule below, and one without a rule is refused. So
nothing is guessed about a model from its structure.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from apem_fast.running.outputs import ModelOutputError

UNIT = 2.0**-52  # twice the rounding of one operation
SLACK = 4  # operations more than counted: for the roundings of the bounds of roundings
TINY = 1e-290  # above what is lost to underflow
WEIGHTS_AT_ONCE = 2**22  # differences of the last layer's weights in memory

CAN = "convolutions, linear layers, batch norm, pooling, ReLU, ReLU6, leaky ReLU, sums, padding and changes of shape"


class NotBounded(ModelOutputError):
    """The model has an operation for which there is no rule; the message names it."""


class OnSegments(Tensor):
    """Values of a network on segments: `offset + slope * t`, off by at most `error`, for t in [-1, 1]."""

    offset: Tensor
    slope: Tensor
    error: Tensor
    head: _Head | None
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
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in SHAPES:
            return _each(func, args, kwargs)
        if name in RULES and "out" not in kwargs:
            return RULES[name](*args, **kwargs)
        if name.endswith("_") and name[:-1] in RULES and isinstance(args[0], OnSegments):
            new = RULES[name[:-1]](*args, **kwargs)
            if new.shape == args[0].shape:
                args[0].overwrite(new)
                return args[0]
        result = func.decompose(*args, **kwargs)  # where it is made of others, as `linear` is
        if result is NotImplemented:
            raise _refused(name)
        return result


@dataclass(frozen=True)
class _Head:
    """What a linear layer's outputs were made of, so that differences of outputs can be bounded more closely."""

    inputs: OnSegments
    weight: Tensor  # (outputs, inputs)
    bias: Tensor | None
    changes: int  # of the inputs' memory until then


def _refused(name: str) -> NotBounded:
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


def _made(offset: Tensor, slope: Tensor, error: Tensor, terms: int, size: Tensor) -> OnSegments:
    """Fresh values, widened by the roundings of so many terms whose absolute values sum to `size`."""
    rounding = (terms + SLACK) * UNIT
    error = error * (1 + rounding) + (rounding * size + TINY)
    # Alike in memory, so that whatever is a view of one is a view of all.
    slope, error = (_laid_out_as(offset, t) for t in (slope, error))
    return OnSegments(offset, slope, error)


def _laid_out_as(like: Tensor, t: Tensor) -> Tensor:
    return t if t.shape == like.shape and t.stride() == like.stride() else torch.empty_like(like).copy_(t)


def _is_constant(*values: object) -> bool:
    return not any(isinstance(value, OnSegments) for value in values)


# -- operations that move values without computing ---------------------------------------------------------------------

SHAPES = frozenset(
    "view _unsafe_view repeat permute transpose t squeeze unsqueeze expand slice select clone contiguous detach alias "
    "lift_fresh split split_with_sizes unbind narrow _reshape_alias reflection_pad2d replication_pad2d "
    "upsample_nearest2d pixel_shuffle".split()
)


def _each(func: Any, args: tuple, kwargs: dict) -> Any:
    """The operation on each of the three."""
    v = args[0]
    if not isinstance(v, OnSegments):
        raise _refused(func._schema.name.removeprefix("aten::"))
    parts = [func(part, *args[1:], **kwargs) for part in (v.offset, v.slope, v.error)]
    made = [OnSegments(*parts)] if isinstance(parts[0], Tensor) else [OnSegments(*one) for one in zip(*parts)]
    for one in made:
        one.changes = v.changes  # whether or not this operation makes a view
    return made[0] if isinstance(parts[0], Tensor) else made


def _to_copy(v: OnSegments, *, dtype: torch.dtype | None = None, **kwargs: Any) -> OnSegments:
    if dtype not in (None, torch.float64):
        raise _refused(f"a conversion to {str(dtype).removeprefix('torch.')}")
    return OnSegments(*(torch.ops.aten._to_copy(part, **kwargs) for part in (v.offset, v.slope, v.error)))


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> OnSegments:
    def part(name: str) -> Tensor:
        return torch.cat(
            [getattr(t, name) if isinstance(t, OnSegments) else t if name == "offset" else 0 * t for t in tensors], dim
        )

    return OnSegments(part("offset"), part("slope"), part("error"))


def _constant_pad(v: OnSegments, pad: Sequence[int], value: float = 0) -> OnSegments:
    padded = torch.ops.aten.constant_pad_nd
    return OnSegments(padded(v.offset, pad, value), padded(v.slope, pad, 0), padded(v.error, pad, 0))


# -- sums of products --------------------------------------------------------------------------------------------------


def _convolution(
    v: OnSegments,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> OnSegments:
    if transposed or not _is_constant(weight, bias):
        raise _refused("a transposed convolution" if transposed else "a convolution with weights that vary")

    def convolved(t: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return torch.convolution(t, w, b, stride, padding, dilation, False, output_padding, groups)

    terms = weight[0].numel() + 1
    rounding = (terms + SLACK) * UNIT
    error = convolved(v.error + rounding * v.greatest, weight.abs(), None if bias is None else rounding * bias.abs())
    nothing = torch.zeros((), dtype=error.dtype, device=error.device)
    return _made(convolved(v.offset, weight, bias), convolved(v.slope, weight, None), error, terms, nothing)


def _linear(v: OnSegments, weight: Tensor, bias: Tensor | None) -> OnSegments:
    """Of a weight (inputs, outputs)."""
    if not isinstance(v, OnSegments) or not _is_constant(weight, bias):
        raise _refused("a product of two values that vary")
    terms = weight.shape[0] + 1
    rounding = (terms + SLACK) * UNIT
    error = (v.error + rounding * v.greatest) @ weight.abs()
    offset = v.offset @ weight
    nothing = torch.zeros((), dtype=error.dtype, device=error.device)
    if bias is not None:
        offset, error = offset + bias, error + rounding * bias.abs()
    made = _made(offset, v.slope @ weight, error, terms, nothing)
    made.head = _Head(v, weight.t(), bias, v.changes[0])
    return made


def _addmm(bias: Tensor, v: OnSegments, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> OnSegments:
    if beta != 1 or alpha != 1:
        raise _refused("addmm with other factors than 1")
    return _linear(v, weight, bias)


def _mm(v: OnSegments, weight: Tensor) -> OnSegments:
    return _linear(v, weight, None)


def _batch_norm(
    v: OnSegments,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[OnSegments, Tensor, Tensor]:
    if training or not _is_constant(weight, bias, mean, variance):
        raise _refused("batch norm with the statistics of the batch")

    def of_channels(t: Tensor) -> Tensor:
        return t.view(1, -1, *[1] * (v.dim() - 2))

    scale = 1 / (variance + eps).sqrt()
    scale = of_channels(scale if weight is None else scale * weight)
    mean, shift = of_channels(mean), of_channels(torch.zeros_like(mean) if bias is None else bias)
    size = scale.abs() * (v.greatest + mean.abs()) + shift.abs()
    made = _made((v.offset - mean) * scale + shift, v.slope * scale, v.error * scale.abs(), 8, size)
    return made, v.offset.new_empty(0), v.offset.new_empty(0)


def _batch_norm_in_evaluation(
    v: OnSegments, weight: Any, bias: Any, mean: Tensor, variance: Tensor, momentum: float, eps: float
) -> tuple[OnSegments, Tensor, Tensor]:
    return _batch_norm(v, weight, bias, mean, variance, False, momentum, eps)


def _cudnn_batch_norm(*args: Any) -> tuple[Tensor, ...]:
    return *_batch_norm(*args), args[0].offset.new_empty(0)


def _mean_of(func: Callable[..., Tensor], terms_of: Callable[..., int]) -> Callable[..., OnSegments]:
    """The rule of an operation each of whose outputs is a sum of so many inputs, or their mean."""

    def rule(v: OnSegments, *args: Any, **kwargs: Any) -> OnSegments:
        if kwargs.get("dtype", v.dtype) not in (None, v.dtype):
            raise _refused("a sum in another type")
        terms = terms_of(v, *args) + 1
        rounding = (terms + SLACK) * UNIT
        error = func(v.error + rounding * v.greatest, *args, **kwargs)
        nothing = torch.zeros((), dtype=error.dtype, device=error.device)
        return _made(func(v.offset, *args, **kwargs), func(v.slope, *args, **kwargs), error, terms, nothing)

    return rule


def _terms_of_sum(v: OnSegments, dims: Any = None, keepdim: bool = False) -> int:
    dims = [dims] if isinstance(dims, int) else [*(dims or range(v.dim()))]
    if any(dim % v.dim() == 0 for dim in dims):
        raise _refused("a sum over the images")
    return math.prod(v.shape[dim] for dim in dims)


def _terms_of_average(v: OnSegments, kernel: Sequence[int], *others: Any) -> int:
    return math.prod(_pair(kernel))


def _terms_of_adaptive(v: OnSegments, size: Sequence[int]) -> int:
    return math.prod(v.shape[-2:])


def _sum(a: Any, b: Any, *, alpha: float = 1) -> OnSegments:
    b = b if alpha == 1 else b * alpha
    if _is_constant(a) or _is_constant(b):
        v, constant = (b, a) if _is_constant(a) else (a, b)
        size = abs(constant) + v.greatest
        offset = v.offset + constant
        return _made(offset, v.slope.expand_as(offset), v.error.expand_as(offset), 1, size)
    return _made(a.offset + b.offset, a.slope + b.slope, a.error + b.error, 1, a.greatest + b.greatest)


def _difference(a: Any, b: Any, *, alpha: float = 1) -> OnSegments:
    return _sum(a, -(b if alpha == 1 else b * alpha))


def _product(a: Any, b: Any) -> OnSegments:
    if not _is_constant(a) and not _is_constant(b):
        raise _refused("a product of two values that vary")
    v, factor = (b, a) if _is_constant(a) else (a, b)
    return _made(v.offset * factor, v.slope * factor, v.error * abs(factor), 1, v.greatest * abs(factor))


def _quotient(v: Any, divisor: Any, *, rounding_mode: str | None = None) -> OnSegments:
    if not _is_constant(divisor) or rounding_mode is not None:
        raise _refused("a division by a value that varies")
    return _made(v.offset / divisor, v.slope / divisor, v.error / abs(divisor), 1, v.greatest / abs(divisor))


def _negative(v: OnSegments) -> OnSegments:
    return OnSegments(-v.offset, -v.slope, v.error.clone())


# -- operations with a bend --------------------------------------------------------------------------------------------


def _at_least(v: OnSegments, floor: Any, leak: float = 0.0) -> OnSegments:
    """max(v, floor), or floor + leak * (v - floor) below it: between two lines where the bend lies within reach.

    From above the chord over [low, high] bounds it, from below the parallel of that through the bend.
    """
    if not 0 <= leak < 1:
        raise _refused("a leaky ReLU with a negative slope outside [0, 1)")
    reach = v.reach
    low, high = v.offset - reach - floor, v.offset + reach - floor
    crosses = (low < 0) & (high > 0)
    # A point's share is that of its side: where low and high are one and the same, they do not cross.
    share = torch.where(low >= 0, 1.0, torch.where(high <= 0, leak, (high - leak * low) / (high - low).clamp_min(TINY)))
    rise = torch.where(crosses, low * (leak - share), 0.0)
    size = v.greatest + abs(floor) + rise
    offset = v.offset * share + (1 - share) * floor + rise / 2
    return _made(offset, v.slope * share, v.error * share + rise / 2, 8, size)


def _at_most(v: OnSegments, ceiling: Any) -> OnSegments:
    return _negative(_at_least(_negative(v), -ceiling))


def _clamped(v: OnSegments, lower: Any = None, upper: Any = None) -> OnSegments:
    v = v if lower is None else _at_least(v, lower)
    return v if upper is None else _at_most(v, upper)


def _maximum(a: Any, b: Any) -> OnSegments:
    if not _is_constant(a) and not _is_constant(b):
        raise _refused("a maximum of two values that vary")
    return _at_least(b, a) if _is_constant(a) else _at_least(a, b)


def _minimum(a: Any, b: Any) -> OnSegments:
    if not _is_constant(a) and not _is_constant(b):
        raise _refused("a minimum of two values that vary")
    return _at_most(b, a) if _is_constant(a) else _at_most(a, b)


def _max_pool(
    v: OnSegments,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[OnSegments, Tensor]:
    """One of each window's values, and by how much another one may be above it."""
    (high, wide), (down, along) = _pair(kernel), _pair(stride or kernel)
    (top, left), spread = _pair(padding), _pair(dilation)
    if ceil_mode or spread != (1, 1) or v.dim() != 4:
        raise _refused("a max pooling with dilation or ceil_mode")

    def windows(t: Tensor, outside: float) -> Tensor:
        t = nn.functional.pad(t, (left, left, top, top), value=outside)
        return t.unfold(2, high, down).unfold(3, wide, along).flatten(4)

    offset, slope, error = windows(v.offset, -math.inf), windows(v.slope, 0.0), windows(v.error, 0.0)
    best = offset.argmax(dim=-1, keepdim=True)
    its_offset, its_slope, its_error = (t.gather(-1, best) for t in (offset, slope, error))
    above = offset - its_offset + (slope - its_slope).abs() + error + its_error
    above = above.scatter(-1, best, 0.0).amax(dim=-1).clamp_min(0)
    size = windows(v.greatest, 0.0).amax(dim=-1)
    made = _made(its_offset[..., 0] + above / 2, its_slope[..., 0], its_error[..., 0] + above / 2, 8, size)
    return made, torch.empty(0, dtype=torch.int64)


def _pair(value: Any) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    return values if len(values) == 2 else (values[0], values[0])


_aten = torch.ops.aten
RULES: dict[str, Callable[..., Any]] = {
    "_to_copy": _to_copy,
    "cat": _cat,
    "constant_pad_nd": _constant_pad,
    "convolution": _convolution,
    "addmm": _addmm,
    "mm": _mm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_in_evaluation,
    "cudnn_batch_norm": _cudnn_batch_norm,
    "mean": _mean_of(_aten.mean, _terms_of_sum),
    "sum": _mean_of(_aten.sum, _terms_of_sum),
    "avg_pool2d": _mean_of(_aten.avg_pool2d, _terms_of_average),
    "_adaptive_avg_pool2d": _mean_of(_aten._adaptive_avg_pool2d, _terms_of_adaptive),
    "add": _sum,
    "sub": _difference,
    "mul": _product,
    "div": _quotient,
    "neg": _negative,
    "relu": lambda v: _at_least(v, 0.0),
    "leaky_relu": lambda v, leak=0.01: _at_least(v, 0.0, leak),
    "hardtanh": lambda v, lower=-1.0, upper=1.0: _clamped(v, lower, upper),
    "clamp": _clamped,
    "clamp_min": _at_least,
    "clamp_max": _at_most,
    "maximum": _maximum,
    "minimum": _minimum,
    "max_pool2d_with_indices": _max_pool,
}


# -- what is asked of the logits ---------------------------------------------------------------------------------------


def least_margins(logits: Tensor, labels: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of N segments: a number below every margin of the label on it, and the margin in its middle, both (N,).

    Args:
        logits: (N, classes) of a model that was run on segments.
        labels: (N,) int64.
        above: (N, classes) bool, the classes that take no part; None for none.
    """
    if not isinstance(logits, OnSegments):
        raise NotBounded('search="certified" needs logits that depend on the image (got a constant)')
    out = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device) if above is None else above
    out = out.scatter(1, labels[:, None], True)
    head = logits.head
    if head is None or head.changes != head.inputs.changes[0] or logits.changes[0]:
        offset, slope, error = _differences(logits, labels)
    else:
        offset, slope, error = _differences_of_head(head, labels)
    low = offset - slope.abs() - error
    low = low - 4 * UNIT * (offset.abs() + slope.abs() + error)
    return low.masked_fill(out, math.inf).amin(dim=1), offset.masked_fill(out, math.inf).amin(dim=1)


def _differences(logits: OnSegments, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The label's logit less each one, as differences of bounds."""
    own_offset, own_slope, own_error = (
        part.gather(1, labels[:, None]) for part in (logits.offset, logits.slope, logits.error)
    )
    rounding = 4 * UNIT * (own_offset.abs() + logits.offset.abs() + own_slope.abs() + logits.slope.abs())
    return own_offset - logits.offset, own_slope - logits.slope, own_error + logits.error + rounding


def _differences_of_head(head: _Head, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as bounds of differences: closer, since what both logits share falls out. Both logits' own roundings
    count."""
    v, weight = head.inputs, head.weight
    bias = torch.zeros_like(weight[:, 0]) if head.bias is None else head.bias
    terms = weight.shape[1] + 2
    rounding = 2 * (terms + SLACK) * UNIT
    size = v.greatest @ weight.abs().t() + bias.abs()
    size = size + size.gather(1, labels[:, None])
    parts = []
    for rows in torch.arange(len(labels), device=labels.device).split(max(1, WEIGHTS_AT_ONCE // weight.numel())):
        difference = (weight[labels[rows]][:, None] - weight).transpose(1, 2)  # (rows, inputs, classes)
        parts.append(
            torch.stack(
                [
                    (v.offset[rows, None] @ difference)[:, 0] + (bias[labels[rows]][:, None] - bias),
                    (v.slope[rows, None] @ difference)[:, 0],
                    (v.error[rows, None] @ difference.abs())[:, 0] * (1 + rounding),
                ]
            )
        )
    offset, slope, error = torch.cat(parts, dim=1)
    return offset, slope, error + rounding * size + TINY
