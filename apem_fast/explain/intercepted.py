"""Recognises and replaces torch functions while a model runs, however the model is written.

A `TorchFunctionMode` sees every torch function that a forward pass calls, from a module, as `F.relu`, or as a method of
a tensor. So a method that needs other layers does not rewrite the model or put hooks on it, but runs it under such a
mode. Scripted code, worker threads and the model's own autograd functions are not seen by a mode, but they leave nodes
in the autograd graph, which is searched afterwards.
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


def is_relu(function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
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
    """Runs the block under a mode, with compiled parts of the model as plain Python, so that the mode sees inside."""
    has_compiled_parts = "torch._dynamo" in sys.modules  # importing it only to ask would take seconds
    with torch.compiler.set_stance("force_eager") if has_compiled_parts else contextlib.nullcontext(), mode:
        yield


def require_visible(model: nn.Module, name: str) -> None:
    """Raises if the model is scripted or traced, since no mode can see its calls."""
    for path, module in getattr(model, "named_modules", tuple)():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"{path!r}" if path else "the model itself"
            raise TypeError(
                f"{name}: model must not be scripted or traced: its layers cannot be replaced (got {where})"
            )


def nodes_behind(tensor: Tensor, seen: set[Node] | None = None) -> Iterator[Node]:
    """The nodes of the autograd graph behind a tensor that are not yet in `seen`; they are added to it."""
    seen = set() if seen is None else seen
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting.extend(following for following, _ in node.next_functions)
