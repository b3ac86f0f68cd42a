"""How reliable is a visual explanation? APEM, its filter, and adversarial explanations of ranking networks."""

from apem_fast import ops
from apem_fast.metric import ApemResult, EpsilonResult, Evaluator, apem, minimum_epsilon
from apem_fast.ops import backend, relevance_map

__version__ = "0.1.0"

__all__ = [
    "ApemResult",
    "EpsilonResult",
    "Evaluator",
    "apem",
    "backend",
    "minimum_epsilon",
    "ops",
    "relevance_map",
]
