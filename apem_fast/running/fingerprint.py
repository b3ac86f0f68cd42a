"""Everything that a model's answer depends on besides its input, to know when a captured graph is out of date.

A graph repeats what the model did when it was captured. It reads new values in the same tensors, but does not see
anything else: a module that replaced another, a hook, or a number in an attribute.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules_of_torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format, type)
DEEP = 4  # containers and objects within a module's attribute; what lies deeper is only known by its identity
CONTAINERS = (Mapping, list, tuple, set, frozenset)

_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")


class Fingerprint:
    """The modules of a model, their types, forward functions, hooks, modes and attributes, and where their tensors lie.

    It keeps everything that it has seen alive, so that nothing new can get an old address. If two fingerprints are
    equal, graphs of one model are valid for the other. Containers and objects in attributes are included.
    """

    def __init__(self, model: object):
        self._held: list[object] = []
        self._seen: dict[int, int] = {}
        hooks = [getattr(modules_of_torch, name, None) for name in _GLOBAL_HOOKS]
        self._values = (self._of(model, DEEP), *(self._of(one, DEEP) for one in hooks))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]

    def _of(self, value: object, deep: int) -> object:
        if isinstance(value, PLAIN):
            return type(value), value
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if isinstance(value, CONTAINERS) and not value:
            return type(value)
        if id(value) in self._seen:
            return "seen", self._seen[id(value)]
        self._seen[id(value)] = len(self._seen)
        self._held.append(value)
        if isinstance(value, nn.Module):
            forward = getattr(type(value), "forward", None)
            return id(value), type(value), id(forward), self._of(vars(value), DEEP)
        return id(value), self._within(value, deep - 1) if deep > 0 else None

    def _within(self, value: object, deep: int) -> object:
        """What a container or another object holds; of a function nothing, which is known by its identity."""
        if isinstance(value, Mapping):
            return tuple((self._of(key, 0), self._of(held, deep)) for key, held in value.items())
        if isinstance(value, CONTAINERS):
            return tuple(self._of(held, deep) for held in value)
        return None if callable(value) else self._of(getattr(value, "__dict__", None), deep)

    def _of_tensor(self, tensor: Tensor) -> object:
        if tensor.layout != torch.strided:
            self._held.append(tensor)
            return id(tensor), tensor._version
        self._held.append(tensor.detach())  # its storage; a parameter may be given another one
        return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
