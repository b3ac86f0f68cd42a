"""Mutants that change nothing, each with the reason: they were looked at one by one after every test had passed."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {}
"""By the mutant's name, as `mutants.names_of` has it."""
