"""The options of `apem-fast filter`: one frozen record, from which its command line is made without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from apem_fast.callers import said_by
from apem_fast.experiment.run.options import RunOptions, bounds_said
from apem_fast.options import ENGINE, BoundsOf, Options, described, field_of, option, resumable

if TYPE_CHECKING:
    from apem_fast.experiment.run.store import RunStore


@described
@dataclass(frozen=True, kw_only=True)
class FilterOptions(Options):
    """What to filter, and how: the engine's options, and those of `filter_relevance`."""

    network: str = field_of(RunOptions, "network")
    weights: str | None = field_of(RunOptions, "weights")
    explainers: tuple[str, ...] = option(
        lambda: ("gradient",),
        "The explanations to filter, separated by commas, as for evaluate.",
        metavar="NAMES",
        shown="gradient",
        resumable=True,
    )
    stages: tuple[str, ...] = option(
        lambda: ("1-channel", "times-image"),
        "What the maps look like: 3-channel, 1-channel, times-grey, times-image; P1 Figure 7 has the second and the "
        "last.",
        metavar="NAMES",
        shown="1-channel,times-image",
        resumable=True,
    )
    percentile: float | None = field_of(RunOptions, "percentile")
    bounds: BoundsOf = field_of(RunOptions, "bounds")
    levels: int | None = option(None, "Set a map's values to 0 in N steps.", metavar="N", shown="one value at a time")
    min_drop: float = option(0.0, "A score that falls by no more than this does not count as a drop.", metavar="E")
    patience: int = option(0, "A lower score counts as a drop only if it stays low for N further levels.", metavar="N")
    against: Literal["previous", "start"] = option(
        "previous",
        "What a score is compared with: previous, the level before (as in the paper); start, the original map.",
        metavar="WHAT",
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.", metavar="DEVICE", resumable=True)

    @said_by("")  # as a run's options
    def __post_init__(self) -> None:
        from apem_fast import validation
        from apem_fast.explain import explainer_from, key_of
        from apem_fast.relevance import STAGES

        super().__post_init__()
        for name in ("explainers", "stages"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one (got none)")
        for stage in self.stages:
            validation.choice("stages", stage, STAGES)
        object.__setattr__(self, "stages", tuple(stage for stage in STAGES if stage in self.stages))
        keys = [key_of(explainer_from(specification)) for specification in self.explainers]
        object.__setattr__(self, "explainers", tuple(dict.fromkeys(keys)))
        validation.whole("patience", self.patience, least=0)
        validation.choice("against", self.against, validation.AGAINST)

    def _checked_bounds(self) -> BoundsOf:
        return bounds_said(self.bounds)

    @classmethod
    def of_run(cls, store: RunStore, **others: Any) -> FilterOptions:
        """The options with which a run's maps were made and measured, and further ones of the filter."""
        return cls(**{name: getattr(store.options, name) for name in OF_RUN} | others)

    def decisive(self) -> dict[str, Any]:
        """The options that the filtered maps depend on."""
        return {one.name: getattr(self, one.name) for one in fields(self) if not resumable(one)}


OF_RUN = (
    "network",
    "weights",
    "percentile",
    *(name for name in ENGINE if not resumable(Options.__dataclass_fields__[name])),
)
"""The options that are taken from the run if a run's maps are filtered."""
