"""What a model calls while it runs: recognised and replaced in flight, however the model is written.

A `TorchFunctionMode` sees every function of torch that a forward pass calls, whether a module, `F.relu` or a method of
a tensor called it. So a method that needs other layers neither rewrites the model nor puts hooks on it: it runs the
model under its mode. What a mode cannot see (scripted code, worker threads, autograd functions of the model's own)
still leaves its node in the autograd graph, which is looked through afterwards.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})

_RELUS = frozenset({F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6})
_HARDTANHS = frozenset({F.hardtanh, F.hardtanh_})
_CLAMPS = frozenset(
    getattr(owner, name + suffix)
    for owner in (torch, Tensor)
    for name in ("clamp", "clip", "clamp_min")
    for suffix in ("", "_")
)


def is_relu(function: Callable, arguments: tuple, options: dict[str, Any]) -> bool:
    """Whether a call is a rectified linear unit: max(x, 0), or min(max(x, 0), ceiling) as in ReLU6."""
    if function in _RELUS:
        return True
    if function in _HARDTANHS:
        return (arguments[1] if len(arguments) > 1 else options.get("min_val", -1.0)) == 0
    if function in _CLAMPS:
        floor = arguments[1] if len(arguments) > 1 else options.get("min")
        return isinstance(floor, (int, float)) and floor == 0
    return False


@contextlib.contextmanager
def running_under(mode: TorchFunctionMode) -> Iterator[None]:
    """Run what is inside under a mode, compiled parts of the model as plain Python so that the mode sees into them."""
    has_compiled_parts = "torch._dynamo" in sys.modules  # and importing it costs seconds
    with torch.compiler.set_stance("force_eager") if has_compiled_parts else contextlib.nullcontext(), mode:
        yield


def require_visible(model: nn.Module, name: str) -> None:
    """Refuse models whose calls no mode can see."""
    for path, module in getattr(model, "named_modules", tuple)():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"{path!r}" if path else "the model itself"
            raise TypeError(
                f"{name}: model must not be scripted or traced: its layers cannot be replaced (got {where})"
            )


def nodes_behind(tensor: Tensor, seen: set[Node] | None = None) -> Iterator[Node]:
    """The nodes of the autograd graph behind a tensor, less those already in `seen`, which grows by them."""
    seen = set() if seen is None else seen
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(following for following, _ in node.next_functions)
