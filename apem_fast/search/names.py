"""The search policies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apem_fast.callers import sentence
from apem_fast.search.certified import Certified
from apem_fast.search.exhaustive import Exhaustive
from apem_fast.search.isolate import Isolate
from apem_fast.search.policy import Search

POLICIES: dict[str, Callable[[], Search[Any]]] = {
    "isolate": Isolate,
    "fast": lambda: Isolate(safety=4, flat=128, steep=512, growth=0.25),
    "careful": lambda: Isolate(safety=8, flat=32, steep=128, growth=0.125),
    "exhaustive": Exhaustive,
    "certified": Certified,
}


def policy_of(search: str | Search[Any]) -> Search[Any]:
    """The policy of that name; a policy is returned as it is."""
    if isinstance(search, str):
        if search not in POLICIES:
            names = " or ".join(f'"{name}"' for name in POLICIES)
            raise ValueError(sentence(f'search must be {names} or a policy (got "{search}")'))
        return POLICIES[search]()
    if not isinstance(search, Search):
        raise TypeError(
            sentence(f"search must be a name or a policy with start, ask and tell (got {type(search).__name__})")
        )
    return search
