"""Search policies: they choose the epsilon to probe next, from margins alone, and know nothing of models.

Epsilons are grid steps here: whole numbers from 1 to `last_step` (epsilon = k * step; the margin at k = 0 is known).
`policy.py` defines what a policy is. Your own policy can be passed as `search=` everywhere.
"""

from apem_fast.search.abilities import Clearing, Resumable, warn_of_slow_way
from apem_fast.search.certified import Certified, Segment
from apem_fast.search.exhaustive import Exhaustive, ExhaustiveState
from apem_fast.search.isolate import SPARE, Isolate, IsolateState, lowest_margin
from apem_fast.search.names import POLICIES, policy_of
from apem_fast.search.policy import CENSORED, UNDECIDED, Measured, Probes, Search, State

__all__ = [
    "CENSORED",
    "POLICIES",
    "SPARE",
    "UNDECIDED",
    "Certified",
    "Clearing",
    "Exhaustive",
    "ExhaustiveState",
    "Isolate",
    "IsolateState",
    "Measured",
    "Probes",
    "Resumable",
    "Search",
    "Segment",
    "State",
    "lowest_margin",
    "policy_of",
    "warn_of_slow_way",
]
