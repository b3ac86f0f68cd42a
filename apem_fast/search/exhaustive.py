"""The papers' definition of the search: every grid point from the first, until the label changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apem_fast.search.policy import CENSORED, UNDECIDED, Margins, Measured, Probes, State, Steps


@dataclass(frozen=True)
class ExhaustiveState(State):
    reached: Steps  # [rows]: every step up to this one was measured and is not flipped

    @property
    def cleared(self) -> Steps:
        """Alias of `reached`, as `Clearing` requires it."""
        return self.reached


@dataclass(frozen=True)
class Exhaustive:
    """The papers' definition: every grid point from the first, until the label changes."""

    def start(self, margin: Margins, slope: Margins, last_step: int) -> ExhaustiveState:
        return ExhaustiveState(np.zeros(len(margin), np.int64), last_step, np.zeros(len(margin), np.int64))

    def ask(self, state: ExhaustiveState, room: int) -> Probes:
        undecided = state.undecided
        block = max(1, room // max(1, len(undecided)))
        row = np.repeat(undecided, block)
        step = state.reached[row] + np.tile(np.arange(1, block + 1), len(undecided))
        inside = step <= state.last_step
        return Probes(row[inside], step[inside])

    def tell(self, state: ExhaustiveState, measured: Measured) -> ExhaustiveState:
        reached, first_flip = state.reached.copy(), state.first_flip.copy()
        np.maximum.at(reached, measured.row, measured.step)
        nowhere = state.last_step + 1
        first = np.full(len(reached), nowhere)
        np.minimum.at(first, measured.row[measured.flipped], measured.step[measured.flipped])
        first_flip[(first_flip == UNDECIDED) & (reached == state.last_step)] = CENSORED
        first_flip[first < nowhere] = first[first < nowhere]
        return ExhaustiveState(first_flip, state.last_step, reached)
