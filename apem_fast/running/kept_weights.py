"""Weights in the type to which autocast would cast them, kept from one batch to the next.

Autocast casts a weight again at every use unless the weight requires a gradient, and here none does. In a captured
graph all weights would be read, rounded and written in every replay. The copies take half the memory of the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CAST = frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear "
    "matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm addbmm".split()
)
"""Calls whose every float32 argument autocast casts, on a CPU and on a GPU alike."""


class KeptWeights:
    """Called with a parameter and a type, it returns the parameter rounded to that type, as autocast would round it.

    A copy is made when it is first asked for, and afterwards lies where it lies: graphs know it by its address.
    """

    def __init__(self) -> None:
        # By what is rounded, how that lies (its layout may be exchanged while a search runs) and to which type.
        self._copies: dict[tuple[object, ...], tuple[nn.Parameter, Tensor, Tensor]] = {}
        self._versions: dict[tuple[object, ...], int] = {}

    def __call__(self, weight: nn.Parameter, dtype: torch.dtype) -> Tensor:
        key = id(weight), weight.stride(), dtype
        if key not in self._copies:
            # The parameter is held, so that no other can have its id.
            self._copies[key] = weight, weight.detach(), weight.detach().to(dtype)
        elif self._versions[key] != weight._version:  # the model writes into it
            _, own, copy = self._copies[key]
            copy.copy_(own)
        self._versions[key] = weight._version
        return self._copies[key][2]

    def refresh(self) -> None:
        """Copies the weights' present values into the same memory, since no counter sees writes through `.data`."""
        with torch.no_grad():
            for _, own, copy in self._copies.values():
                copy.copy_(own)

    def forget(self) -> None:
        """Forgets all copies, because the weights were moved or replaced."""
        self._copies.clear()
        self._versions.clear()


def with_kept(kept: KeptWeights, arguments: Any, dtype: torch.dtype, device_type: str) -> Any:
    """The arguments of a call, with kept copies in the place of the parameters that autocast would cast to `dtype`."""
    if isinstance(arguments, dict):
        return {name: with_kept(kept, value, dtype, device_type) for name, value in arguments.items()}
    if isinstance(arguments, tuple):
        return tuple(with_kept(kept, value, dtype, device_type) for value in arguments)
    return kept(arguments, dtype) if _is_cast(arguments, device_type) else arguments


def _is_cast(value: object, device_type: str) -> bool:
    """Whether it is a plain parameter of this device that autocast casts, and that nobody wants a gradient of."""
    return (
        isinstance(value, nn.Parameter)
        and type(value).__torch_function__ is nn.Parameter.__torch_function__  # a subclass may compute in its own way
        and value.dtype == torch.float32
        and value.device.type == device_type
        and not value.requires_grad
        and not value.is_inference()
    )
