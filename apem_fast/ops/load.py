"""Loads the compiled operators, and registers the reference definitions where no compiled ones exist.

That is everywhere if nothing was compiled, and for CUDA if there are no kernels for this torch's CUDA.

The libraries in `apem_fast/lib` do not use Python: one has the operators' schemas and CPU kernels, and there is one
with CUDA kernels for each major version of CUDA. If a C++ program has loaded the operators already, those are used.

Either way `torch.ops.apem_fast.*` exists afterwards, with the same schemas. `APEM_FAST_BACKEND=reference` in the
environment does not load the compiled libraries, for comparison.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from apem_fast.ops import reference

OPERATORS = (
    "directed_relevance",
    "directed_relevance_backward",
    "perturb",
    "perturb_backward",
    "perturb_probes",
    "perturb_probes_into",
    "label_margin",
    "label_margin_backward",
    "probe_answers",
    "first_flip",
    "relevance_map",
    "attack_penalty",
    "attack_penalty_backward",
    "attack_step",
    "zero_levels",
    "saliency_map",
)

# Operators that write into an argument, and which.
MUTATING = {"perturb_probes_into": ("out",)}

LIBRARIES = Path(__file__).parent.parent / "lib"

# Registrations last as long as these objects.
_library: torch.library.Library | None = None


def _warn(sentence: str) -> None:
    warnings.warn(f"apem_fast: {sentence}", RuntimeWarning, stacklevel=2)


def _exists(operator: str) -> bool:
    return bool(torch._C._jit_get_schemas_for_operator(f"apem_fast::{operator}"))


def _has_kernel(key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("apem_fast::perturb_probes", key)


def _why_not(library: Path) -> str | None:
    """Loads a library; if that fails, returns the first line of the reason."""
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return str(error).splitlines()[0]
    return None


def _load_native() -> bool:
    """Whether the operators have compiled kernels for the CPU."""
    wanted = os.environ.get("APEM_FAST_BACKEND", "") != "reference"
    if not _exists("perturb_probes"):
        library = LIBRARIES / "libapem_fast.so"
        if not wanted:
            return False
        if not library.exists():
            _warn(
                "the compiled operators are missing, so the slower reference backend is used; "
                "install a wheel, or a C++ compiler and reinstall, to have them"
            )
            return False
        if reason := _why_not(library):
            _warn(f"the compiled operators could not be loaded, so the slower reference backend is used ({reason})")
            return False
    elif not wanted:
        _warn("APEM_FAST_BACKEND=reference comes too late: this process has loaded the compiled operators already")
    missing = [name for name in ("_python_serves", *OPERATORS) if not _exists(name)]
    if missing:
        raise ImportError(
            f"apem_fast: the operators that this process has loaded already must be those of this version "
            f"(got some without {missing[0]})"
        )
    torch.ops.apem_fast._python_serves()
    return True


def _load_cuda() -> str | None:
    """Loads the CUDA kernels; returns None, or the reason why there are none."""
    if not _has_kernel("CUDA"):
        if torch.version.cuda is None:
            return "this torch was built without CUDA"
        major = torch.version.cuda.split(".")[0]
        library = LIBRARIES / f"libapem_fast_cuda{major}.so"
        if not library.exists():
            built = sorted(path.stem.removeprefix("libapem_fast_cuda") for path in LIBRARIES.glob("*_cuda*.so"))
            return f"the operators were compiled without CUDA {major}" + (
                f", only with CUDA {' and '.join(built)}" if built else ""
            )
        if reason := _why_not(library):
            _warn(f"the CUDA operators could not be loaded, so a GPU runs their slower definitions ({reason})")
            return f"the CUDA operators could not be loaded ({reason})"
    torch.ops.apem_fast._python_serves_cuda()
    return None


def _register_reference() -> torch.library.Library:
    library = torch.library.Library("apem_fast", "DEF")
    for name in OPERATORS:
        definition = getattr(reference, name)
        library.define(name + torch.library.infer_schema(definition, mutates_args=MUTATING.get(name, ())))
        library.impl(name, definition, "CompositeExplicitAutograd")
    return library


def _register_reference_for_cuda() -> torch.library.Library:
    library = torch.library.Library("apem_fast", "IMPL")
    for name in OPERATORS:
        library.impl(name, _said_once(getattr(reference, name)), "CUDA")
    return library


def _said_once(definition: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(definition)
    def call(*arguments: object, **options: object) -> object:
        _say_that_cuda_is_missing()
        return definition(*arguments, **options)

    return call


@functools.cache
def _say_that_cuda_is_missing() -> None:
    _warn(f"{_why_no_cuda}, so on a GPU their slower reference definitions run; reinstall with the CUDA toolkit there")


NATIVE = _load_native()
_why_no_cuda = _load_cuda() if NATIVE else "nothing was compiled"
CUDA_KERNELS = _why_no_cuda is None
if not NATIVE:
    _library = _register_reference()
elif not CUDA_KERNELS:
    _library = _register_reference_for_cuda()


def backend() -> str:
    """What runs the operators: "cuda" (compiled, and a GPU is there), "cpu" (compiled) or "reference"."""
    if not NATIVE:
        return "reference"
    return "cuda" if CUDA_KERNELS and torch.cuda.is_available() else "cpu"
