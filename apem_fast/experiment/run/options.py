"""The options of a run: one frozen, validated record, which is stored with the results.

Each option's help is at its field, from which `apem-fast evaluate` is made. The command line reads this file without
importing torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apem_fast.callers import said_by
from apem_fast.options import BoundsOf, Options, described, option, resumable
from apem_fast.papers import PERCENTILE

SELECTIONS = ("all", "correct", "misclassified", "both")
GIVEN = "given"
"""Stands for images that a Python program passed in, in place of a folder."""
PIXELS = "pixels"
"""Stands for the range of the network's pixels, in place of bounds."""
USUAL_BLOCK = {"cpu": 32, "cuda": 512}  # images by device: a GPU needs many rays at once


def usual_explainers() -> tuple[str, ...]:
    """The explainers of a run if none are named."""
    from apem_fast.explain import BASELINES

    return ("gradient", "smooth-grad", *BASELINES)


def usual_stages() -> tuple[str, ...]:
    """The stages of the papers' tables, in their order."""
    from apem_fast.relevance import USUAL_STAGES

    return USUAL_STAGES


def bounds_said(value: object) -> BoundsOf:
    """Bounds as typed, "none", "pixels" or "LOWER,UPPER", or as a program gives them.

    "pixels" remains a word until the network is known.

    Raises:
        ValueError, TypeError: anything else.
    """
    from apem_fast import validation

    if not isinstance(value, str):
        return validation.bounds(value)
    if value == PIXELS:
        return value  # type: ignore[return-value]  # `Network.bounds` makes a pair of it
    try:
        ends = [_end(text) for text in value.split(",")] if value != "none" else [None, None]
    except ValueError:
        ends = []
    if len(ends) != 2:
        raise ValueError(
            "bounds must be none, pixels, or LOWER,UPPER, each a number, none, or a number for each channel such as "
            f"-2.1/-2/-1.8 (got {value!r})"
        )
    return validation.bounds(tuple(ends))


def _end(text: str) -> float | tuple[float, ...] | None:
    if text.strip() == "none":
        return None
    numbers = tuple(map(float, text.split("/")))
    return numbers if len(numbers) > 1 else numbers[0]


@described
@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """The options of a run: the engine's, and those of networks, images, explainers and results.

    Paths are made absolute; explainers and stages have no repetitions.
    """

    network: str = option(
        "efficientnet-lite0",
        "The network to explain: efficientnet-lite0, which comes with its ImageNet weights; a classification model of "
        "torchvision, such as resnet18, or of timm, timm:NAME, with --weights; hf:FOLDER, where Hugging Face's library "
        "saved a model with its preparation of images; an exported FILE.pt2; or package.module:function, a function "
        "of yours that returns an nn.Module (224 pixels, ImageNet's mean and deviation) or an "
        "apem_fast.experiment.networks.Network.",
        metavar="NAME",
    )
    weights: str | None = option(
        None,
        "The network's weights, as torch.save(model.state_dict(), FILE) writes them, if it comes without.",
        metavar="FILE",
    )
    images: str = option(
        "photographs",
        "A folder with a folder of images for each class, named after the class, its index from 0 or its synset; a "
        "flat folder of images; or photographs, the bundled ones.",
        metavar="FOLDER",
    )
    ground_truth: str | None = option(
        None,
        "The true classes of images in a flat folder, such as ILSVRC2012's: lines NAME INDEX or NAME SYNSET, or the "
        "development kit's numbers with its meta.mat beside them. none: folders are no classes.",
        metavar="FILE",
    )
    classes: str | None = option(
        None, "The network's classes, a line each, in its order: synset, name, or both.", metavar="FILE"
    )
    selection: str = option(
        "all", "Which images: all, those classified correct or misclassified, or both.", metavar="NAME"
    )
    count: int | None = option(
        None, "How many images take part, drawn at random; of each kind for both.", metavar="N", shown="all"
    )
    seed: int = option(0, "Of the draw of images, and of the shuffles.", metavar="S")
    explainers: tuple[str, ...] = option(
        usual_explainers,
        "Explanations to compare, separated by commas, options after colons: gradient,smooth-grad:samples=50. May be "
        "given several times; commas and colons within brackets or quotes belong to an option's value. Known: "
        "gradient, smooth-grad, lrp, grad-cam, guided-backprop, guided-grad-cam, integrated-gradients, "
        "input-x-gradient, occlusion, rise, attention-rollout, attention-relevance, maps:folder=FOLDER, and the "
        "baselines random, uniform, edge, centered-gaussian; also Captum's, such as "
        "captum.attr.IntegratedGradients:n_steps=20, and functions of your own by their path.",
        metavar="NAMES",
        shown="gradient, smooth-grad and the baselines",
        resumable=True,
    )
    stages: tuple[str, ...] = option(
        usual_stages,
        "What a map looks like when it is measured: 3-channel, 1-channel, times-image; or times-grey, multiplied by "
        "the grey photograph, as P1 section IV-C says it.",
        metavar="NAMES",
        shown="the first three",
    )
    limit: int | None = option(None, "Look only at the first N images, by name.", metavar="N", shown="all")
    percentile: float | None = option(PERCENTILE, "Clip each explanation's values at this percentile.", metavar="P")
    shuffles: int = option(
        0, "Measure N shuffles of each map too, for scores normalised by them; P2 section 5.2 takes 10.", metavar="N"
    )
    measures: tuple[str, ...] = option(
        (),
        "Further measures, a column each: selectivity, continuity, deletion, insertion, relevance_gain, "
        "region_perturbation, flip_fraction, robustness_s, robustness_complement, adversarial_morf, adversarial_lerf; "
        "or all. docs/measures.md says what each is and costs.",
        metavar="NAMES",
        shown="none",
    )
    imputation: str = option(
        "blur",
        "What replaces a feature in deletion, insertion, relevance_gain and flip_fraction: constant, blur or mean.",
        metavar="NAME",
    )
    parts: int = option(100, "In how many parts features are taken away for the curves of measures.", metavar="N")
    bounds: BoundsOf = option(
        "none",
        "Clamp perturbed images: pixels, to what pixels can be; or LOWER,UPPER in the network's input space, each a "
        "number, none, or a number for each channel, -2.1/-2/-1.8. The papers clamp nothing.",
        metavar="BOUNDS",
    )
    curves: bool = option(
        False, "Keep the curves of the measures selectivity, deletion and insertion; the page draws them.", metavar=""
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.", metavar="DEVICE")
    block: int | None = option(
        None,
        "How many images are in memory at once, and finished together.",
        metavar="N",
        shown="32; 512 on a GPU",
    )
    pictures: int | None = option(
        100, "Keep the photograph and the maps of the first N images as PNG.", metavar="N", resumable=True
    )

    @said_by("")  # a run's options are named as they are; the command line says its own name before
    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_inputs()
        self._check_numbers()
        self._check_methods()

    def _checked_bounds(self) -> BoundsOf:
        return bounds_said(self.bounds)

    def _check_inputs(self) -> None:
        from apem_fast import validation
        from apem_fast.experiment.inputs.hugging_face import HUGGING_FACE
        from apem_fast.experiment.inputs.image_folders import NO_GROUND_TRUTH

        words = ("photographs", GIVEN)
        if self.images not in words and not Path(self.images).is_absolute() and not Path(self.images).is_dir():
            raise ValueError(
                f"images must be a folder, or photographs for the bundled ones ({self.images!r} is no folder)"
            )
        for name, own_words in (
            ("images", words),
            ("ground_truth", (NO_GROUND_TRUTH,)),
            ("classes", ()),
            ("weights", ()),
        ):
            path = getattr(self, name)
            if path is not None and path not in own_words:
                object.__setattr__(self, name, str(Path(path).absolute()))
        if self.network.startswith(HUGGING_FACE):
            folder = Path(self.network.removeprefix(HUGGING_FACE)).absolute()
            object.__setattr__(self, "network", f"{HUGGING_FACE}{folder}")
        validation.choice("selection", self.selection, SELECTIONS)

    def _check_numbers(self) -> None:
        from apem_fast import validation

        for name in ("limit", "count"):
            validation.whole_or_none(name, getattr(self, name))
        if self.block is None:
            object.__setattr__(self, "block", USUAL_BLOCK.get(self.device.partition(":")[0], USUAL_BLOCK["cpu"]))
        validation.whole("block", self.block)
        validation.whole("parts", self.parts)
        validation.whole("shuffles", self.shuffles, least=0)
        if self.shuffles:
            validation.not_certified(self.policy, "of shuffled maps, so shuffles must be 0 with it")
        if self.pictures is not None:
            validation.whole("pictures", self.pictures, least=0)
        if self.percentile is not None:
            object.__setattr__(self, "percentile", validation.number("percentile", self.percentile))
            if not 0 <= self.percentile <= 100:
                raise ValueError(f"percentile must lie in [0, 100] (got {self.percentile:g})")

    def _check_methods(self) -> None:
        """The methods in canonical form and without repetitions, so that equal runs have equal records."""
        from apem_fast import validation
        from apem_fast.experiment.run.columns import MEASURES
        from apem_fast.explain import explainer_from, key_of
        from apem_fast.measures.imputation import IMPUTATIONS
        from apem_fast.relevance import STAGES
        from apem_fast.search import POLICIES

        if "all" in self.measures:
            object.__setattr__(self, "measures", tuple(MEASURES))
        validation.choice("imputation", self.imputation, IMPUTATIONS)
        drawn = [name for name, one in MEASURES.items() if one.curve is not None]
        if self.curves and not set(drawn) & set(self.measures):
            raise ValueError(
                f"curves needs one of the measures {', '.join(drawn)} (got {', '.join(self.measures) or 'none'})"
            )
        validation.choice("search", self.search, POLICIES)  # a policy object has no name that could be recorded
        for name, known in (("measures", MEASURES), ("stages", STAGES)):
            for one in getattr(self, name):
                validation.choice(name, one, known)
        if not self.stages:
            raise ValueError("stages must name at least one stage (got none)")
        if not self.explainers:
            raise ValueError("explainers must name at least one explainer (got none)")
        keys = [key_of(explainer_from(specification)) for specification in self.explainers]
        object.__setattr__(self, "explainers", tuple(dict.fromkeys(keys)))
        object.__setattr__(self, "stages", tuple(stage for stage in STAGES if stage in self.stages))

    @property
    def block_size(self) -> int:
        """How many images are in memory at once."""
        assert self.block is not None  # set above
        return self.block

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> RunOptions:
        """The options in a run's record. Nothing that its explainers name is imported.

        An option that is newer than the record gets its default, with which the run was made.
        """
        fields: dict[str, Any] = {name: _in_tuples(value) for name, value in record.items()}
        explainers = fields.pop("explainers")
        if not (isinstance(explainers, tuple) and explainers and all(isinstance(key, str) for key in explainers)):
            raise TypeError("its explainers are no list of names")
        options = cls(**fields, explainers=("uniform",))
        object.__setattr__(options, "explainers", explainers)
        return options

    def conflicts(self, other: RunOptions) -> dict[str, tuple[Any, Any]]:
        """The fields whose difference forbids mixing the results of two runs: name -> (own value, other's value)."""
        return {
            field.name: (getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
            if not resumable(field) and getattr(self, field.name) != getattr(other, field.name)
        }


def _in_tuples(value: Any) -> Any:
    """A record's lists as tuples again."""
    return tuple(map(_in_tuples, value)) if isinstance(value, list) else value
