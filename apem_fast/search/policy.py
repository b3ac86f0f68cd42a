"""Which epsilon to probe next: search policies that know nothing of models.

Epsilons are grid steps here, whole numbers from 1 to `last_step` (epsilon = k * step; the margin at k = 0 is known).
A policy is an immutable record of options. It keeps a few rays at a time, one per row of its state, and takes two
pure steps: `ask` names the probes it wants next, `tell` takes the margins that were measured there and returns the
new state. A ray is decided when `state.first_flip` is no longer UNDECIDED: the least step at which the prediction
was no longer the label, or CENSORED where the search reached `last_step` without one.

Because a policy sees margins only, it is tested with scripted margin curves and no network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.int64]
Margins = NDArray[np.float64]
Rows = NDArray[np.int64]

UNDECIDED = 0  # no ray flips at step 0: the label is the prediction there
CENSORED = -1


class Probes(NamedTuple):
    """Points that a policy wants measured: `step[i]` on the ray in row `row[i]`."""

    row: Rows
    step: Steps


class Measured(NamedTuple):
    """Margins that were measured, and whether the prediction was no longer the label there."""

    row: Rows
    step: Steps
    margin: Margins
    flipped: NDArray[np.bool_]

    def only(self, these: Rows) -> Measured:
        """These of the probes, in this order."""
        return Measured(self.row[these], self.step[these], self.margin[these], self.flipped[these])


@dataclass(frozen=True)
class State:
    """What a policy knows of the rays in its rows; subclasses add arrays whose first axis is the row."""

    first_flip: Steps  # [rows]: UNDECIDED, CENSORED or the answer
    last_step: int

    @property
    def undecided(self) -> Rows:
        return np.flatnonzero(self.first_flip == UNDECIDED)

    def only(self, rows: Rows) -> Self:
        """This state with `rows` alone: finished rays leave."""
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        chosen: dict[str, Any] = {k: v[rows] if isinstance(v, np.ndarray) else v for k, v in fields.items()}
        return type(self)(**chosen)

    def joined(self, other: Self) -> Self:
        """This state with the rows of `other` after its own: waiting rays come in."""
        fields = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)}
        joined: dict[str, Any] = {
            k: np.concatenate(v) if isinstance(v[0], np.ndarray) else v[0] for k, v in fields.items()
        }
        return type(self)(**joined)


S = TypeVar("S", bound=State)


@runtime_checkable
class Search(Protocol[S]):
    """The shape of a policy. `room` is how many probes fit the next batch."""

    def start(self, margin: Margins, slope: Margins, last_step: int) -> S:
        """State of fresh rays from their margins at 0 and the first-order estimate of how fast these fall a step."""

    def ask(self, state: S, room: int) -> Probes:
        """The probes wanted next: at least one of each undecided ray, more only while there is room."""

    def tell(self, state: S, measured: Measured) -> S:
        """The state once all the probes of the last `ask` are measured."""
