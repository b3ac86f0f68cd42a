"""Loads the compiled operators or, where nothing was compiled, registers the reference definitions in their place.

Either way `torch.ops.apem_fast.*` exists afterwards, with the same schemas. `APEM_FAST_BACKEND=reference` in the
environment leaves the compiled library alone, for comparison.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings

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


NATIVE = _load_native()
if not NATIVE:
    _library = _register_reference()


def backend() -> str:
    """What runs the operators: "cuda" (compiled, and a GPU is there), "cpu" (compiled) or "reference"."""
    if not NATIVE:
        return "reference"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key("apem_fast::perturb_probes", "CUDA")
    return "cuda" if has_kernel and torch.cuda.is_available() else "cpu"
