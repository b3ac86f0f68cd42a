"""What a search policy is: it chooses the epsilon to probe next, from margins alone, and knows nothing of models.

Epsilons are grid steps here: whole numbers from 1 to `last_step` (epsilon = k * step; the margin at k = 0 is known). A
policy is an immutable record of options with two pure functions, and its state holds a few rays, one in each row: `ask`
returns the probes that the policy wants next; `tell` takes the margins measured there and returns the new state. A ray
is decided when its `state.first_flip` is no longer UNDECIDED: it is then the least step at which the prediction is not
the label, or CENSORED if the search reached `last_step` without a flip.

Since a policy only sees margins, it is tested with scripted margin curves and no network.
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

UNDECIDED = 0  # no ray flips at step 0, where the label is the prediction
CENSORED = -1


class Probes(NamedTuple):
    """Points that a policy wants measured: `step[i]` on the ray in row `row[i]`."""

    row: Rows
    step: Steps


class Measured(NamedTuple):
    """Measured margins, and whether the prediction is no longer the label there."""

    row: Rows
    step: Steps
    margin: Margins
    flipped: NDArray[np.bool_]

    def only(self, these: Rows) -> Measured:
        """The chosen probes, in this order."""
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
        """This state with only the chosen rows, without finished rays."""
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        chosen: dict[str, Any] = {k: v[rows] if isinstance(v, np.ndarray) else v for k, v in fields.items()}
        return type(self)(**chosen)

    def joined(self, other: Self) -> Self:
        """This state with the rows of `other`, such as new rays, after its own."""
        fields = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)}
        joined: dict[str, Any] = {
            k: np.concatenate(v) if isinstance(v[0], np.ndarray) else v[0] for k, v in fields.items()
        }
        return type(self)(**joined)


S = TypeVar("S", bound=State)


@runtime_checkable
class Search(Protocol[S]):
    """The protocol of a policy. `room` is how many probes fit into the next batch."""

    def start(self, margin: Margins, slope: Margins, last_step: int) -> S:
        """The state of new rays, from their margins at 0 and first-order estimates of the fall per step."""

    def ask(self, state: S, room: int) -> Probes:
        """The probes to run next: at least one for each undecided ray, and more only if there is room."""

    def tell(self, state: S, measured: Measured) -> S:
        """The new state, once all probes of the last `ask` are measured."""
