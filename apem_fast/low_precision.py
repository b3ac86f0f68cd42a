"""A model in low precision, all but its first layer.

A perturbation is small against its image, so rounding the model's input to a few bits loses most of what a probe asks
about. The first convolution or matrix product that a forward pass calls therefore stays in float32. It is found while
the model runs, by a function mode that sees the calls; nothing of the model is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11}  # of one value

LAYERS = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution linear "
    "matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm addbmm mv addmv einsum tensordot chain_matmul".split()
)
"""What autocast runs in low precision, by the names under which it is called."""


def low_precision(precision: str, device_type: str) -> AbstractContextManager[object]:
    """Inside, convolutions and matrix products are in that precision."""
    if precision == "tf32":
        return _Tf32(True)
    return torch.autocast(device_type, getattr(torch, precision))


def first_layer_exact(model: Callable[[Tensor], object]) -> Callable[[Tensor], object]:
    """The model, whose first layer stays in float32 when it is called inside `low_precision`."""

    def forward(inputs: Tensor) -> object:
        with _FirstLayerExact(inputs.device.type):
            return model(inputs)

    return forward


class _Tf32:
    """TensorFloat-32 allowed or not."""

    def __init__(self, allowed: bool):
        self._allowed = allowed

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._allowed

    def __exit__(self, *exception: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


class _FirstLayerExact(TorchFunctionMode):
    """For one forward pass: a mode sees every call that a model makes from Python."""

    def __init__(self, device_type: str):
        super().__init__()
        self._device_type, self._passed = device_type, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._passed or getattr(func, "__name__", "") not in LAYERS:
            return func(*args, **kwargs)
        self._passed = True
        if not all(_is_float32(value) for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)  # the model has rounded its input itself
        if not torch.is_autocast_enabled(self._device_type):
            with _Tf32(False):
                return func(*args, **kwargs)
        with torch.autocast(self._device_type, enabled=False):
            output = func(*args, **kwargs)
        return output.to(torch.get_autocast_dtype(self._device_type))  # what follows is given the type it always is


def _is_float32(value: object) -> bool:
    """Also of what is no tensor of floating-point numbers."""
    return not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float32
