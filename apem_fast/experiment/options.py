"""Everything that decides a run: one frozen record, validated, stored beside the results."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from apem_fast.explain import BASELINES, explainer_from, key_of
from apem_fast.relevance import STAGES

SEARCHES = ("isolate", "exhaustive")
DEFAULT_EXPLAINERS = ("gradient", "smooth-grad", *BASELINES)


def _resumable(default: Any) -> Any:
    """A field that may differ when a run is continued, because no epsilon depends on it."""
    return field(default=default, metadata={"resumable": True})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run.

    Args:
        network: a name from `experiment.networks.NETWORKS`.
        images: where the images come from: "photographs", the bundled ones.
        limit: evaluate only the first so many images; None for all.
        explainers: specifications such as "gradient" or "smooth-grad:samples=50".
        stages: names from `relevance.STAGES`.
        percentile: at which attributions are clipped, in [0, 100]; None for no clipping.
        max_epsilon: where the search of a ray ends, in the space of the network's input.
        step: the grid's step: every epsilon is a multiple of it.
        search: "isolate", or "exhaustive" for every grid point.
        device: "cpu", "cuda" or "cuda:N".
        batch_size: the most perturbed images in one forward pass; None lets the engine choose.
        block: how many images are in memory at once, and finished together.
    """

    network: str = "efficientnet-lite0"
    images: str = "photographs"
    limit: int | None = None
    explainers: tuple[str, ...] = _resumable(DEFAULT_EXPLAINERS)
    stages: tuple[str, ...] = tuple(STAGES)
    percentile: float | None = 99.0
    max_epsilon: float = 4096.0
    step: float = 1.0
    search: str = "isolate"
    device: str = "cpu"
    batch_size: int | None = _resumable(None)
    block: int = 32

    def __post_init__(self) -> None:
        _choice("images", self.images, ("photographs",))
        _choice("search", self.search, SEARCHES)
        for name in ("limit", "batch_size"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        _at_least_one("block", self.block)
        if not self.stages:
            raise ValueError("stages must name at least one stage (got none)")
        for stage in self.stages:
            _choice("stages", stage, tuple(STAGES))
        if not self.explainers:
            raise ValueError("explainers must name at least one explainer (got none)")
        if self.percentile is not None and not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile must lie in [0, 100] (got {self.percentile:g})")
        if not 0 < self.step < math.inf:
            raise ValueError(f"step must be finite and greater than 0 (got {self.step:g})")
        if not self.step <= self.max_epsilon < math.inf:
            raise ValueError(f"max_epsilon must be finite and at least step={self.step:g} (got {self.max_epsilon:g})")
        # Canonical, and without repetitions, so that equal runs have equal records.
        keys = [key_of(explainer_from(specification)) for specification in self.explainers]
        object.__setattr__(self, "explainers", tuple(dict.fromkeys(keys)))
        object.__setattr__(self, "stages", tuple(stage for stage in STAGES if stage in self.stages))

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> RunOptions:
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})

    def conflicts(self, other: RunOptions) -> dict[str, tuple[Any, Any]]:
        """The fields in which two runs differ so that their results must not be mixed: name -> (own, other's)."""
        return {
            field.name: (getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
            if not field.metadata.get("resumable") and getattr(self, field.name) != getattr(other, field.name)
        }


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)} (got {value!r})")


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1 (got {value!r})")
