"""Loads the compiled operators, and registers the reference definitions where there are none: everywhere if nothing was
compiled, for CUDA if it was compiled without.

Either way `torch.ops.apem_fast.*` exists afterwards, with the same schemas. `APEM_FAST_BACKEND=reference` in the
environment leaves the compiled library alone, for comparison.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable

import torch

from apem_fast.ops import reference

OPERATORS = (
    "directed_relevance",
    "directed_relevance_backward",
    "perturb",
    "perturb_backward",
    "perturb_probes",
    "label_margin",
    "label_margin_backward",
    "first_flip",
    "relevance_map",
    "attack_penalty",
    "attack_penalty_backward",
    "attack_step",
    "zero_levels",
    "saliency_map",
)

# Registrations last as long as these objects.
_library: torch.library.Library | None = None


def _load_native() -> bool:
    if os.environ.get("APEM_FAST_BACKEND", "") == "reference":
        return False
    if importlib.util.find_spec("apem_fast._C") is None:
        warnings.warn(
            "apem_fast: the compiled operators are missing, so the slower reference backend is used; "
            "install a C++ compiler and reinstall to have them",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    importlib.import_module("apem_fast._C")
    return True


def _register_reference() -> torch.library.Library:
    library = torch.library.Library("apem_fast", "DEF")
    for name in OPERATORS:
        definition = getattr(reference, name)
        library.define(name + torch.library.infer_schema(definition, mutates_args=()))
        library.impl(name, definition, "CompositeExplicitAutograd")
    return library


def _has_cuda_kernels() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("apem_fast::perturb_probes", "CUDA")


def _register_reference_for_cuda() -> torch.library.Library:
    library = torch.library.Library("apem_fast", "IMPL")
    for name in OPERATORS:
        library.impl(name, _said_once(getattr(reference, name)), "CUDA")
    return library


def _said_once(definition: Callable) -> Callable:
    @functools.wraps(definition)
    def call(*arguments: object, **options: object) -> object:
        _say_that_cuda_is_missing()
        return definition(*arguments, **options)

    return call


@functools.cache
def _say_that_cuda_is_missing() -> None:
    warnings.warn(
        "apem_fast: the operators were compiled without CUDA, so on a GPU their slower reference definitions run; "
        "install the CUDA toolkit and reinstall to have kernels",
        RuntimeWarning,
        stacklevel=2,
    )


NATIVE = _load_native()
CUDA_KERNELS = NATIVE and _has_cuda_kernels()
if not NATIVE:
    _library = _register_reference()
elif not CUDA_KERNELS:
    _library = _register_reference_for_cuda()


def backend() -> str:
    """What runs the operators: "cuda" (compiled, and a GPU is there), "cpu" (compiled) or "reference"."""
    if not NATIVE:
        return "reference"
    return "cuda" if CUDA_KERNELS and torch.cuda.is_available() else "cpu"
