"""How reliable is a visual explanation? APEM, its filter, and adversarial explanations of ranking networks."""

from __future__ import annotations

import importlib
from typing import Any

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
]


_LAZY = {
    "continuity": "apem_fast.measures",
    "data_randomisation": "apem_fast.measures",
    "explain": "",
    "measures": "",
    "parameter_randomisation": "apem_fast.measures",
    "selectivity": "apem_fast.measures",
}
"""What is loaded when it is first used, and from where: the libraries behind it take a second or two."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'apem_fast' has no attribute {name!r}")
    if not _LAZY[name]:
        return importlib.import_module(f"apem_fast.{name}")
    return getattr(importlib.import_module(_LAZY[name]), name)
