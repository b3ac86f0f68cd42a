"""Depthwise convolutions in float64 on a CPU, several times as fast as torch's.

torch has no kernel for them: it runs one small matrix product for every channel, which is most of the time that a
network of such layers (MobileNet, EfficientNet, ConvNeXt) takes in float64. Inside `fast_depthwise` calls of
`torch.nn.functional.conv2d` that are of this kind go to a kernel of our own; all others are left alone. The sums are
the same but for the order of their terms, which here is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from apem_fast.ops.load import NATIVE


def fast_depthwise(device: torch.device) -> AbstractContextManager[object]:
    """Inside, the kernel of our own serves on this device, if there is one for it."""
    return _FastDepthwise() if NATIVE and device.type == "cpu" else nullcontext()


class _Call(NamedTuple):
    """The arguments of `conv2d`, under its names."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] | str = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1

    @property
    def is_ours(self) -> bool:
        """Whether the kernel of our own gives what torch would, derivatives among it."""
        tensors = (self.input, self.weight) if self.bias is None else (self.input, self.weight, self.bias)
        return (
            all(_is_plain(tensor) for tensor in tensors)
            and not any(tensor.requires_grad for tensor in tensors[1:])  # it has a derivative for its input alone
            and self.input.dim() == self.weight.dim() == 4
            and self.input.is_contiguous()
            and self.groups == self.input.shape[1] > 1
            and self.weight.shape[1] == 1
            and self.weight.shape[0] % self.groups == 0
            and not isinstance(self.padding, str)
            and 0 not in (*self.input.shape, *self.weight.shape)
            and all(reach <= size for reach, size in zip(self._reach(), self._padded()))  # torch says what is wrong
        )

    @property
    def options(self) -> tuple[int, ...]:
        """Stride, padding and dilation, each of rows and columns."""
        return (*_pair(self.stride), *_pair(self.padding), *_pair(self.dilation))

    def _reach(self) -> list[int]:
        return [d * (taps - 1) + 1 for d, taps in zip(_pair(self.dilation), self.weight.shape[2:])]

    def _padded(self) -> list[int]:
        return [size + 2 * p for size, p in zip(self.input.shape[2:], _pair(self.padding))]


def _pair(option: Any) -> tuple[int, int]:
    values = (option,) if isinstance(option, int) else tuple(option)
    return (values[0], values[-1])


def _is_plain(value: Tensor) -> bool:
    return type(value) in (Tensor, nn.Parameter) and value.dtype == torch.float64 and value.device.type == "cpu"


class _FastDepthwise(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and not _is_transformed():
            call = _Call(*args, **kwargs)
            if call.is_ours:
                return _Depthwise.apply(call.input, call.weight, call.bias, call.options)
        return func(*args, **kwargs)


def _is_transformed() -> bool:
    """Whether something needs more of a convolution than its value and a backward pass."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.options = input.shape, options
        return torch.ops.apem_fast._depthwise_conv2d(input, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Transposed.apply(*gradients, weight, ctx.size, ctx.options), None, None, None


class _Transposed(torch.autograd.Function):
    """The derivative of `_Depthwise`, whose own derivative is `_Depthwise` without a bias."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, size: torch.Size, options: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.options = options
        _, channels, height, width = size
        transposed = torch.ops.apem_fast._depthwise_conv2d_backward
        return transposed(gradient, weight, height, width, *options, channels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _Depthwise.apply(*gradients, weight, None, ctx.options), None, None, None
