"""How reliable is a visual explanation? APEM, its filter, and adversarial explanations of ranking networks."""

from __future__ import annotations

import importlib
from types import ModuleType

from apem_fast import ops
from apem_fast.filtering import FilterResult, ScoreCurve, filter_relevance
from apem_fast.level_search import Stop
from apem_fast.metric import ApemResult, EpsilonResult, Evaluator, apem, minimum_epsilon
from apem_fast.normalised import ApemNormResult, apem_norm
from apem_fast.ops import backend
from apem_fast.relevance import relevance_map

__version__ = "0.1.0"

__all__ = [
    "ApemNormResult",
    "ApemResult",
    "EpsilonResult",
    "Evaluator",
    "FilterResult",
    "ScoreCurve",
    "Stop",
    "apem",
    "apem_norm",
    "backend",
    "explain",
    "filter_relevance",
    "minimum_epsilon",
    "ops",
    "relevance_map",
]


def __getattr__(name: str) -> ModuleType:
    """`apem_fast.explain` is loaded when it is first used: the libraries behind it take a second or two."""
    if name == "explain":
        return importlib.import_module("apem_fast.explain")
    raise AttributeError(f"module 'apem_fast' has no attribute {name!r}")
