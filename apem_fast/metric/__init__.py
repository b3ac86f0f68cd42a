"""APEM: how reliable a relevance map is, measured by the least perturbation along it that changes the prediction.

The definition is in P1 section III-A and P2 section 3.1. Epsilons are in the space of the tensors that the model
receives; the l1 norm of the perturbation equals epsilon if no gradient is exactly 0.
"""

from apem_fast.metric.evaluator import Evaluator
from apem_fast.metric.functions import apem, minimum_epsilon
from apem_fast.metric.results import ApemResult, EpsilonResult

__all__ = ["ApemResult", "EpsilonResult", "Evaluator", "apem", "minimum_epsilon"]
