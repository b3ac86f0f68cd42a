"""Sums of products: they are applied to offset and slope, and with absolute values to the error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from apem_fast.running.segments.values import RULES, SLACK, UNIT, Head, OnSegments, is_constant, refused, widened


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
    if transposed or not is_constant(weight, bias):
        raise refused("a transposed convolution" if transposed else "a convolution with weights that vary")

    def convolved(t: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return torch.convolution(t, w, b, stride, padding, dilation, False, output_padding, groups)

    terms = weight[0].numel() + 1
    rounding = (terms + SLACK) * UNIT
    error = convolved(v.error + rounding * v.greatest, weight.abs(), None if bias is None else rounding * bias.abs())
    nothing = torch.zeros((), dtype=error.dtype, device=error.device)
    return widened(convolved(v.offset, weight, bias), convolved(v.slope, weight, None), error, terms, nothing)


def _linear(v: OnSegments, weight: Tensor, bias: Tensor | None) -> OnSegments:
    """Of a weight (inputs, outputs)."""
    if not isinstance(v, OnSegments) or not is_constant(weight, bias):
        raise refused("a product of two values that vary")
    terms = weight.shape[0] + 1
    rounding = (terms + SLACK) * UNIT
    error = (v.error + rounding * v.greatest) @ weight.abs()
    offset = v.offset @ weight
    nothing = torch.zeros((), dtype=error.dtype, device=error.device)
    if bias is not None:
        offset, error = offset + bias, error + rounding * bias.abs()
    made = widened(offset, v.slope @ weight, error, terms, nothing)
    made.head = Head(v, weight.t(), bias, v.changes[0])
    return made


def _addmm(bias: Tensor, v: OnSegments, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> OnSegments:
    if beta != 1 or alpha != 1:
        raise refused("addmm with other factors than 1")
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
    if training or not is_constant(weight, bias, mean, variance):
        raise refused("batch norm with the statistics of the batch")

    def of_channels(t: Tensor) -> Tensor:
        return t.view(1, -1, *[1] * (v.dim() - 2))

    scale = 1 / (variance + eps).sqrt()
    scale = of_channels(scale if weight is None else scale * weight)
    mean, shift = of_channels(mean), of_channels(torch.zeros_like(mean) if bias is None else bias)
    size = scale.abs() * (v.greatest + mean.abs()) + shift.abs()
    made = widened((v.offset - mean) * scale + shift, v.slope * scale, v.error * scale.abs(), 8, size)
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
            raise refused("a sum in another type")
        terms = terms_of(v, *args) + 1
        rounding = (terms + SLACK) * UNIT
        error = func(v.error + rounding * v.greatest, *args, **kwargs)
        nothing = torch.zeros((), dtype=error.dtype, device=error.device)
        return widened(func(v.offset, *args, **kwargs), func(v.slope, *args, **kwargs), error, terms, nothing)

    return rule


def _terms_of_sum(v: OnSegments, dims: Any = None, keepdim: bool = False) -> int:
    dims = [dims] if isinstance(dims, int) else [*(dims or range(v.dim()))]
    if any(dim % v.dim() == 0 for dim in dims):
        raise refused("a sum over the images")
    return math.prod(v.shape[dim] for dim in dims)


def _terms_of_average(v: OnSegments, kernel: Sequence[int], *others: Any) -> int:
    return math.prod(pair(kernel))


def _terms_of_adaptive(v: OnSegments, size: Sequence[int]) -> int:
    return math.prod(v.shape[-2:])


def _sum(a: Any, b: Any, *, alpha: float = 1) -> OnSegments:
    b = b if alpha == 1 else b * alpha
    if is_constant(a) or is_constant(b):
        v, constant = (b, a) if is_constant(a) else (a, b)
        size = abs(constant) + v.greatest
        offset = v.offset + constant
        return widened(offset, v.slope.expand_as(offset), v.error.expand_as(offset), 1, size)
    return widened(a.offset + b.offset, a.slope + b.slope, a.error + b.error, 1, a.greatest + b.greatest)


def _difference(a: Any, b: Any, *, alpha: float = 1) -> OnSegments:
    return _sum(a, -(b if alpha == 1 else b * alpha))


def _product(a: Any, b: Any) -> OnSegments:
    if not is_constant(a) and not is_constant(b):
        raise refused("a product of two values that vary")
    v, factor = (b, a) if is_constant(a) else (a, b)
    return widened(v.offset * factor, v.slope * factor, v.error * abs(factor), 1, v.greatest * abs(factor))


def _quotient(v: Any, divisor: Any, *, rounding_mode: str | None = None) -> OnSegments:
    if not is_constant(divisor) or rounding_mode is not None:
        raise refused("a division by a value that varies")
    return widened(v.offset / divisor, v.slope / divisor, v.error / abs(divisor), 1, v.greatest / abs(divisor))


def negative(v: OnSegments) -> OnSegments:
    return OnSegments(-v.offset, -v.slope, v.error.clone())


def pair(value: Any) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    return values if len(values) == 2 else (values[0], values[0])


_aten = torch.ops.aten
RULES.update(
    {
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
        "neg": negative,
    }
)
