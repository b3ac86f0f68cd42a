"""Mutants that change nothing, each with the reason: they were looked at one by one after every test had passed."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "search/isolate.py outside: 1 -> 2": "a step beyond any grid, twice as far beyond it",
    "search/isolate.py _next_step: 1 -> 2 (2)": "a divisor in the place of falls that are not positive, whose "
    "quotients are left out",
    "search/isolate.py _fall_ahead: fall <= 0 -> fall < 0": "a fall of 0 is extrapolated to 0 all the same",
    "running/segments/bends.py _at_least: 8 -> 9": "one rounding more than there are: bounds are wider by 1e-16 of "
    "their size, and still bounds",
    "filter/filtering.py _drift: False -> True": "of an answer that was asked for its gradient nothing else is read",
    "experiment/run/store.py set_aside: 6 -> 7": "how many damaged files of one name are counted at most: ten million",
}
"""By the mutant's name, as `mutants.names_of` has it."""
