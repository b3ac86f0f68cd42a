"""How reliable is a visual explanation? APEM, its filter, and adversarial explanations of ranking networks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from apem_fast import ops
from apem_fast.filter.filtering import FilterResult, ScoreCurve, filter_relevance
from apem_fast.filter.stopping import Stop
from apem_fast.metric import ApemResult, EpsilonResult, Evaluator, apem, minimum_epsilon
from apem_fast.normalised import ApemNormResult, apem_norm
from apem_fast.ops import backend
from apem_fast.relevance import relevance_map
from apem_fast.running.outputs import Classifier

if TYPE_CHECKING:
    from apem_fast import explain, measures, siamese
    from apem_fast.measures import continuity, data_randomisation, parameter_randomisation, selectivity

__version__ = "0.1.0"

__all__ = [
    "ApemNormResult",
    "ApemResult",
    "Classifier",
    "EpsilonResult",
    "Evaluator",
    "FilterResult",
    "ScoreCurve",
    "Stop",
    "apem",
    "apem_norm",
    "backend",
    "continuity",
    "data_randomisation",
    "explain",
    "filter_relevance",
    "measures",
    "minimum_epsilon",
    "ops",
    "parameter_randomisation",
    "relevance_map",
    "selectivity",
    "siamese",
]

_MODULES = ("explain", "measures", "siamese")
_MEASURES = ("continuity", "data_randomisation", "parameter_randomisation", "selectivity")


def __getattr__(name: str) -> Any:
    """Loaded when it is first used: the libraries behind these take a second or two."""
    if name in _MODULES:
        return importlib.import_module(f"apem_fast.{name}")
    if name in _MEASURES:
        return getattr(importlib.import_module("apem_fast.measures"), name)
    raise AttributeError(f"module 'apem_fast' has no attribute {name!r}")
