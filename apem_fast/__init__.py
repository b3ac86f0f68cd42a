"""How reliable is a visual explanation? APEM, its filter, and adversarial explanations of ranking networks.

Importing the package registers the operators, `torch.ops.apem_fast.*`; everything else is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apem_fast import explain, measures, ops, siamese
    from apem_fast.cmake import cmake_prefix
    from apem_fast.experiment.audit import audit
    from apem_fast.experiment.functions import evaluate, report
    from apem_fast.filter.filtering import filter_relevance
    from apem_fast.filter.results import FilterResult, ScoreCurve
    from apem_fast.filter.stopping import Stop
    from apem_fast.measures import continuity, data_randomisation, parameter_randomisation, selectivity
    from apem_fast.metric import ApemResult, EpsilonResult, Evaluator, apem, minimum_epsilon
    from apem_fast.metric.auditing import Audit
    from apem_fast.metric.normalised import ApemNormResult, apem_norm
    from apem_fast.ops import backend
    from apem_fast.relevance import relevance_map
    from apem_fast.results.overlaying import overlay
    from apem_fast.running.outputs import Classifier

__version__ = "0.2.0"

__all__ = [
    "ApemNormResult",
    "ApemResult",
    "Audit",
    "Classifier",
    "EpsilonResult",
    "Evaluator",
    "FilterResult",
    "ScoreCurve",
    "Stop",
    "apem",
    "apem_norm",
    "audit",
    "backend",
    "cmake_prefix",
    "continuity",
    "data_randomisation",
    "evaluate",
    "explain",
    "filter_relevance",
    "measures",
    "minimum_epsilon",
    "ops",
    "overlay",
    "parameter_randomisation",
    "relevance_map",
    "report",
    "selectivity",
    "siamese",
]

# The module that defines each of these names. Every other name is a module of the package.
_HOMES = {
    "ApemNormResult": "metric.normalised",
    "ApemResult": "metric",
    "Audit": "metric.auditing",
    "Classifier": "running.outputs",
    "EpsilonResult": "metric",
    "Evaluator": "metric",
    "FilterResult": "filter.results",
    "ScoreCurve": "filter.results",
    "Stop": "filter.stopping",
    "apem": "metric",
    "apem_norm": "metric.normalised",
    "audit": "experiment.audit",
    "backend": "ops",
    "cmake_prefix": "cmake",
    "continuity": "measures",
    "data_randomisation": "measures",
    "evaluate": "experiment.functions",
    "filter_relevance": "filter.filtering",
    "minimum_epsilon": "metric",
    "overlay": "results.overlaying",
    "parameter_randomisation": "measures",
    "relevance_map": "relevance",
    "report": "experiment.functions",
    "selectivity": "measures",
}

_MODULES = ("adapters", "experiment", "margin_curve", "options", "relevance", "search")
"""Modules that users import, beside the names above."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"apem_fast.{_HOMES[name]}"), name)
    elif not name.startswith("_") and importlib.util.find_spec(f"apem_fast.{name}") is not None:
        value = importlib.import_module(f"apem_fast.{name}")
    else:
        raise AttributeError(f"module 'apem_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})


def _is_the_command() -> bool:
    """Whether this process is `apem-fast` or `python -m apem_fast`, whose --help and --version need no torch."""
    program = Path(sys.argv[0]).stem if getattr(sys, "argv", None) else ""
    return program == "apem-fast" or ("-m", "apem_fast") in zip(sys.orig_argv, sys.orig_argv[1:])


if not _is_the_command():
    from apem_fast import ops
