"""The engine's options: one record, whose fields every function takes that searches rays.

A new option is a field of `Options` and a line of `EngineOptions` below it; `apem`, `minimum_epsilon`, `apem_norm`,
`filter_relevance`, `Evaluator` and the adapters take it without a change.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from torch import Tensor

from apem_fast import validation
from apem_fast.search import Search, policy_of

BoundOf = float | Sequence[float] | Tensor | None
BoundsOf = tuple[BoundOf, BoundOf]


class EngineOptions(TypedDict, total=False):
    """The fields of `Options` as keyword arguments, for `**options: Unpack[EngineOptions]`."""

    max_epsilon: float
    step: float
    search: str | Search
    batch_size: int | None
    precision: str
    compile: bool
    bounds: BoundsOf
    record: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """How far and how finely rays are searched.

    Args:
        max_epsilon: a ray without a flip up to here is censored.
        step: of the epsilon grid; epsilon is always a whole multiple of it.
        search: "isolate" (the first flip from few probes; "fast" and "careful" take fewer and more, see
            `apem_fast.search.Isolate`), "exhaustive" (the papers' definition: every grid point from the first until the
            label changes), or a policy from `apem_fast.search`.
        batch_size: how many perturbed images a batch has; None finds out which is fastest.
        precision: "float32", every probe in the images' own type with TensorFloat-32 off; or "bfloat16", "float16" or
            "tf32" (CUDA), which screen probes in that precision and confirm in float32 whatever sets an epsilon.
            float16 is as fast as bfloat16 on most devices, is closer to float32, and so spares float32 more probes. On
            a CPU the precision is tried once float32 has answered some hundred probes, and left where it is not faster.
        compile: run perturbed images through `torch.compile` of the model; images whose margin is close to 0 are still
            decided by the model itself.
        bounds: (lower, upper) to which perturbed images are clamped, in the model's input space; the papers have
            none. Each is None, a number, or a number for each channel, so that pixels in [0, 1] can be said where
            images are normalised: `(-mean / std, (1 - mean) / std)`.
        record: who decides labels, sign gradients, and probes whose margins are too close to 0 for float32: "float64",
            a copy of the model in float64, so that epsilons are the same on every processor; or "float32", the model
            itself. A model that does not compute in float64 falls back to the latter, with a warning.
    """

    max_epsilon: float = 4096.0
    step: float = 1.0
    search: str | Search = "isolate"
    batch_size: int | None = None
    precision: str = "float32"
    compile: bool = False
    bounds: BoundsOf = (None, None)
    record: str = "float64"
    policy: Search = field(init=False, repr=False)
    last_step: int = field(init=False, repr=False)

    @classmethod
    def of(cls, caller: str, **options: Unpack[EngineOptions]) -> Options:
        """The record of these options; an unknown one is refused in a sentence that names the caller."""
        known = EngineOptions.__annotations__
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise TypeError(f"{caller}: unknown option {name}; {hint}known: {', '.join(known)}")
        return cls(**options)

    def __post_init__(self) -> None:
        for name in ("step", "max_epsilon"):
            object.__setattr__(self, name, validation.positive(name, getattr(self, name)))
        if self.max_epsilon < self.step:
            raise ValueError(f"apem: max_epsilon must be at least step={self.step:g} (got {self.max_epsilon:g})")
        object.__setattr__(self, "batch_size", validation.batch_size(self.batch_size))
        validation.precision(self.precision)
        object.__setattr__(self, "bounds", validation.bounds(self.bounds))
        validation.record(self.record)
        object.__setattr__(self, "policy", policy_of(self.search))
        object.__setattr__(self, "last_step", validation.grid_steps(self.max_epsilon, self.step))
