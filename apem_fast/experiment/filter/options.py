"""What `apem-fast filter` is asked for: one frozen record, from which its command line is made, without torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from apem_fast.callers import said_by
from apem_fast.experiment.run.options import RunOptions
from apem_fast.options import ENGINE, Options, described, field_of, option, resumable

if TYPE_CHECKING:
    from apem_fast.experiment.run.store import RunStore


@described
@dataclass(frozen=True, kw_only=True)
class FilterOptions(Options):
    """What to filter, and how: the engine's options, and those of `filter_relevance`."""

    network: str = field_of(RunOptions, "network")
    weights: str | None = field_of(RunOptions, "weights")
    explainer: str = option("gradient", "The explanation to filter.", metavar="NAME")
    stage: str = option(
        "1-channel",
        "What a map looks like: 3-channel, 1-channel, times-image; P2 section 4.5 filters 1-channel.",
        metavar="NAME",
    )
    percentile: float | None = field_of(RunOptions, "percentile")
    levels: int | None = option(None, "Take a map's values away in N steps.", metavar="N", shown="one value at a time")
    min_drop: float = option(0.0, "A score that falls by no more than this has not dropped.", metavar="E")
    patience: int = option(0, "For how many further levels a score may stay lower before that is a drop.", metavar="N")
    against: Literal["previous", "start"] = option(
        "previous",
        "What a score is compared with: previous, the level before (the paper's); start, the map as it came.",
        metavar="WHAT",
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.", metavar="DEVICE", resumable=True)

    @said_by("")  # as a run's options
    def __post_init__(self) -> None:
        from apem_fast import validation
        from apem_fast.relevance import STAGES

        super().__post_init__()
        validation.choice("stage", self.stage, STAGES)
        validation.whole("patience", self.patience, least=0)
        validation.choice("against", self.against, validation.AGAINST)

    @classmethod
    def of_run(cls, store: RunStore, **others: Any) -> FilterOptions:
        """The options under which a run's maps were made and measured, and others of the filter's own."""
        return cls(**{name: getattr(store.options, name) for name in OF_RUN} | others)

    def decisive(self) -> dict[str, Any]:
        """Those that decide what the filtered maps are."""
        return {one.name: getattr(self, one.name) for one in fields(self) if not resumable(one)}


OF_RUN = (
    "network",
    "weights",
    "percentile",
    *(name for name in ENGINE if not resumable(Options.__dataclass_fields__[name])),
)
"""What maps of a run are filtered with as the run says."""
