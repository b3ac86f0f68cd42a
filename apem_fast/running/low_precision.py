"""Runs a model in low precision, except its first layer.

A perturbation is small compared with its image, so rounding the model's input to a few bits would lose most of it.
Therefore the first convolution or matrix product of a forward pass stays in float32. A function mode finds it while the
model runs, so the model is not changed. Later calls get weights that were rounded once, which autocast would round each
time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from apem_fast.running.kept_weights import CAST, KeptWeights, with_kept
from apem_fast.running.undisturbed import products_in

_CUDNN: Any = torch.backends.cudnn  # whose attributes are not declared

ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11}  # of one value

LAYERS = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution linear "
    "matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm addbmm mv addmv einsum tensordot chain_matmul".split()
)
"""The names of the functions that autocast runs in low precision."""


def low_precision(precision: str, device_type: str) -> AbstractContextManager[object]:
    """Within the block, convolutions and matrix products run in that precision."""
    if precision == "tf32":
        return products_in("tf32")
    return torch.autocast(device_type, getattr(torch, precision))


class TooSlow(Exception):
    """A batch in low precision was stopped because it took too long."""


class FirstLayerExact(nn.Module):
    """A model whose first layer stays in float32 within `low_precision`; elsewhere it is the model itself."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.training = getattr(model, "training", False)  # frozen scripts have no mode
        self.deadline: float | None = None
        """Once `time.perf_counter()` has reached it, a batch in low precision is broken off, at the next call in it."""
        self.kept = KeptWeights()
        """To be refreshed before each search. What it holds is nothing that an answer depends on."""

    def forward(self, inputs: Tensor) -> object:
        device_type = inputs.device.type
        if not (torch.is_autocast_enabled(device_type) or _tf32_is_allowed()):
            return self.model(inputs)
        kept = None if torch.compiler.is_compiling() else self.kept  # which fuses the roundings
        with _FirstLayerInFloat32(device_type, self.deadline, kept):
            return self.model(inputs)


def _tf32_is_allowed() -> bool:
    """Not where a compiler reads this: it follows a mode, but no switch of TensorFloat-32 inside the model."""
    return not torch.compiler.is_compiling() and _CUDNN.conv.fp32_precision == "tf32"


class _FirstLayerInFloat32(TorchFunctionMode):
    """During one forward pass, whose calls from Python the mode sees, keeps the first layer in float32, and gives the
    others kept weights."""

    def __init__(self, device_type: str, deadline: float | None = None, kept: KeptWeights | None = None):
        super().__init__()
        self._device_type, self._deadline, self._kept = device_type, deadline, kept
        self._is_behind_it = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._deadline is not None and time.perf_counter() > self._deadline:
            raise TooSlow
        name = getattr(func, "__name__", "")
        if name not in LAYERS:
            return func(*args, **kwargs)
        if self._is_behind_it:
            if self._kept is not None and name in CAST and torch.is_autocast_enabled(self._device_type):
                dtype = torch.get_autocast_dtype(self._device_type)
                args, kwargs = with_kept(self._kept, (args, kwargs), dtype, self._device_type)
            return func(*args, **kwargs)
        self._is_behind_it = True
        if not all(_is_float32(value) for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)  # the model has rounded its input itself
        if not torch.is_autocast_enabled(self._device_type):
            with products_in("ieee"):
                return func(*args, **kwargs)
        with torch.autocast(self._device_type, enabled=False):
            output = func(*args, **kwargs)
        return output.to(torch.get_autocast_dtype(self._device_type))  # what follows is given the type it always is


def _is_float32(value: object) -> bool:
    """True unless a floating tensor of another dtype."""
    return not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float32
