"""How reliable is a visual explanation? APEM, its filter, and adversarial explanations of ranking networks."""

from apem_fast import ops
from apem_fast.filtering import FilterResult, ScoreCurve, filter_relevance
from apem_fast.level_search import Stop
from apem_fast.metric import ApemResult, EpsilonResult, Evaluator, apem, minimum_epsilon
from apem_fast.ops import backend, relevance_map

__version__ = "0.1.0"

__all__ = [
    "ApemResult",
    "EpsilonResult",
    "Evaluator",
    "FilterResult",
    "ScoreCurve",
    "Stop",
    "apem",
    "backend",
    "filter_relevance",
    "minimum_epsilon",
    "ops",
    "relevance_map",
]
