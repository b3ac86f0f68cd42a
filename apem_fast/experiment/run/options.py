"""Everything that decides a run: one frozen record, validated, stored beside the results."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apem_fast.experiment.inputs.image_folders import NO_GROUND_TRUTH
from apem_fast.experiment.run.columns import MEASURES
from apem_fast.explain import BASELINES, explainer_from, key_of
from apem_fast.relevance import STAGES
from apem_fast.search import POLICIES
from apem_fast.validation import MOST_STEPS, PRECISIONS, RECORDS, number

SEARCHES = tuple(POLICIES)
SELECTIONS = ("all", "correct", "misclassified", "both")
DEFAULT_EXPLAINERS = ("gradient", "smooth-grad", *BASELINES)


USUAL_BLOCK = {"cpu": 32, "cuda": 512}  # images by device: a GPU wants many rays under search at once


def _resumable(default: Any) -> Any:
    """A field that may differ when a run is continued, because no epsilon depends on it."""
    return field(default=default, metadata={"resumable": True})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run.

    Args:
        network: a name as `experiment.networks.load_network` takes.
        weights: the file of its weights, if it does not bring them.
        images: where the images come from: "photographs", the bundled ones, or a folder.
        ground_truth: a file that says what the images of a flat folder show; "none" for folders that are no classes.
        classes: a file that lists the network's classes in order, with their synsets or names.
        limit: look only at the first so many images, by name; None for all.
        selection: which images take part: "all", those classified "correct" or "misclassified", or "both".
        count: how many take part, drawn at random; of each kind for "both". None for all there are.
        seed: of the draw, and of the shuffles.
        explainers: specifications such as "gradient" or "smooth-grad:samples=50".
        stages: names from `relevance.STAGES`.
        percentile: at which attributions are clipped, in [0, 100]; None for no clipping.
        max_epsilon: where the search of a ray ends, in the space of the network's input.
        step: the grid's step: every epsilon is a multiple of it.
        search: "isolate"; "fast" or "careful", the same with fewer or more probes; or "exhaustive", every grid point.
        shuffles: how many shuffled maps are measured beside each map, for the normalised score (P2 section 5.2).
        measures: names from `experiment.measures.MEASURES`, for columns of their own.
        device: "cpu", "cuda" or "cuda:N".
        batch_size: the most perturbed images in one batch; None lets the engine choose.
        record: who decides labels, sign gradients and margins too close to 0 for float32: "float64", a copy of the
            network in float64, or "float32", the network itself. The rows say who it was.
        precision: "float32"; or "bfloat16", "float16" or "tf32" (on a GPU), which screen probes and change no epsilon.
        compile: whether probes run through `torch.compile` of the network.
        block: how many images are in memory at once, and finished together; None for what suits the device.
        pictures: of how many images, the first ones, the photograph and the maps are written as PNG; None for all.

    Paths are kept absolute.
    """

    network: str = "efficientnet-lite0"
    weights: str | None = None
    images: str = "photographs"
    ground_truth: str | None = None
    classes: str | None = None
    limit: int | None = None
    selection: str = "all"
    count: int | None = None
    seed: int = 0
    explainers: tuple[str, ...] = _resumable(DEFAULT_EXPLAINERS)
    stages: tuple[str, ...] = tuple(STAGES)
    percentile: float | None = 99.0
    max_epsilon: float = 4096.0
    step: float = 1.0
    search: str = "isolate"
    shuffles: int = 0
    measures: tuple[str, ...] = ()
    device: str = "cpu"
    batch_size: int | None = _resumable(None)
    record: str = "float64"
    precision: str = _resumable("float32")
    compile: bool = _resumable(False)
    block: int | None = None
    pictures: int | None = _resumable(100)

    def __post_init__(self) -> None:  # noqa: C901, PLR0912 - one line for each option
        if self.images != "photographs" and not Path(self.images).is_absolute() and not Path(self.images).is_dir():
            raise ValueError(f"images must be photographs, the bundled ones, or a folder (got {self.images!r})")
        for name, word in (
            ("images", "photographs"),
            ("ground_truth", NO_GROUND_TRUTH),
            ("classes", ""),
            ("weights", ""),
        ):
            path = getattr(self, name)
            if path is not None and path != word:
                object.__setattr__(self, name, str(Path(path).absolute()))
        _choice("search", self.search, SEARCHES)
        _choice("precision", self.precision, PRECISIONS)
        _choice("record", self.record, RECORDS)
        _choice("selection", self.selection, SELECTIONS)
        for name in ("limit", "count", "batch_size"):
            if getattr(self, name) is not None:
                _at_least(1, name, getattr(self, name))
        if self.block is None:
            object.__setattr__(self, "block", USUAL_BLOCK.get(self.device.partition(":")[0], USUAL_BLOCK["cpu"]))
        _at_least(1, "block", self.block)
        _at_least(0, "shuffles", self.shuffles)
        if self.pictures is not None:
            _at_least(0, "pictures", self.pictures)
        for measure in self.measures:
            _choice("measures", measure, tuple(MEASURES))
        if not self.stages:
            raise ValueError("stages must name at least one stage (got none)")
        for stage in self.stages:
            _choice("stages", stage, tuple(STAGES))
        if not self.explainers:
            raise ValueError("explainers must name at least one explainer (got none)")
        for name in ("step", "max_epsilon", *(("percentile",) if self.percentile is not None else ())):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        if self.percentile is not None and not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile must lie in [0, 100] (got {self.percentile:g})")
        if not 0 < self.step < math.inf:
            raise ValueError(f"step must be finite and greater than 0 (got {self.step:g})")
        if not self.step <= self.max_epsilon < math.inf:
            raise ValueError(f"max_epsilon must be finite and at least step={self.step:g} (got {self.max_epsilon:g})")
        if self.max_epsilon / self.step > MOST_STEPS:
            raise ValueError(
                f"max_epsilon / step must be at most 2^53 (got max_epsilon={self.max_epsilon:g}, step={self.step:g})"
            )
        # Canonical, and without repetitions, so that equal runs have equal records.
        keys = [key_of(explainer_from(specification)) for specification in self.explainers]
        object.__setattr__(self, "explainers", tuple(dict.fromkeys(keys)))
        object.__setattr__(self, "stages", tuple(stage for stage in STAGES if stage in self.stages))

    @property
    def block_size(self) -> int:
        """How many images are in memory at once."""
        assert self.block is not None  # made so above
        return self.block

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> RunOptions:
        """The options of a run's record. Its explainers are taken as they are: nothing they name is imported."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        explainers = fields.pop("explainers")
        if not (isinstance(explainers, tuple) and explainers and all(isinstance(key, str) for key in explainers)):
            raise TypeError("its explainers are no list of names")
        options = cls(**fields, explainers=("uniform",))
        object.__setattr__(options, "explainers", explainers)
        return options

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


def _at_least(least: int, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least} (got {value!r})")
