"""Every implementation of the operators that the tests compare, and the reasons why one cannot run here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import apem_fast.ops  # noqa: F401  (registers the operators)
from apem_fast.ops import load, reference


@dataclass(frozen=True)
class Backend:
    """The operators for tensors on `device`: an attribute each, taken from `source`."""

    name: str
    device: str
    source: Any

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if operator not in load.OPERATORS:
            raise AttributeError(operator)
        return getattr(self.source, operator)

    def run(self, operator: str, *arguments: Any) -> Any:
        """The operator on this backend's device, for arguments on the CPU; its results come back there."""
        result = getattr(self, operator)(*(a.to(self.device) if isinstance(a, Tensor) else a for a in arguments))
        return tuple(r.cpu() for r in result) if isinstance(result, tuple) else result.cpu()

    def __str__(self) -> str:
        return self.name


def _emulated() -> tuple[ModuleType | None, str | None]:
    if importlib.util.find_spec("emulated") is None:
        return None, "there is no emulator in this tree"
    import emulated

    return emulated, emulated.why_not()


def _why_no_cuda() -> str | None:
    if not load.NATIVE or not torch._C._dispatch_has_kernel_for_dispatch_key("apem_fast::perturb_probes", "CUDA"):
        return "the operators were compiled without CUDA"
    return None if torch.cuda.is_available() else "there is no NVIDIA GPU"


def _parameter(backend: Backend, why_not: str | None, *marks: pytest.MarkDecorator) -> Any:
    skip = [pytest.mark.skip(reason=f"{backend}: {why_not}")] if why_not else []
    return pytest.param(backend, id=backend.name, marks=[*marks, *skip])


_emulator, _why_no_emulator = _emulated()
REFERENCE = _parameter(Backend("reference", "cpu", reference), None)
NATIVE = [
    _parameter(Backend("cpu", "cpu", torch.ops.apem_fast), None if load.NATIVE else "nothing was compiled"),
    _parameter(Backend("emulated", "cpu", _emulator), _why_no_emulator),
    _parameter(Backend("cuda", "cuda", torch.ops.apem_fast), _why_no_cuda(), pytest.mark.cuda),
]

# Parametrisations: everything; what is compared with the reference; devices of the registered operators.
every_backend = pytest.mark.parametrize("backend", [REFERENCE, *NATIVE])
native_backend = pytest.mark.parametrize("backend", NATIVE)
every_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(bool(_why_no_cuda()), reason=str(_why_no_cuda()))]
        ),
    ],
)
