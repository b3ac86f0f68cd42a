"""Measures of an explanation other than APEM: each is an optional column of a run's results.

Several measures use the same curves, which are computed once for each map: deletion, insertion and the relevance gain
together cost as much as the gain alone. All maps of a block share its adversarial images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from apem_fast.experiment.inputs.network import Network
from apem_fast.explain import Explainer
from apem_fast.measures import continuity, deletion, insertion, region_perturbation
from apem_fast.measures.adversarial_curves import AdversarialCurvesResult, FlippedImages, curves_towards
from apem_fast.measures.confined_robustness import RobustnessResult, robustness_of_sets
from apem_fast.measures.flip_share import flip_fractions
from apem_fast.measures.removal import RemovalCurve
from apem_fast.metric import Evaluator
from apem_fast.relevance import Stage


@dataclass
class Explained:
    """A block of images, and one explainer's maps of them at one stage.

    A map that leaves no ray is replaced by 0.5 throughout; its value does not enter the results.
    """

    evaluator: Evaluator
    network: Network
    explainer: Explainer
    stage: Stage
    percentile: float | None
    relevance: Tensor  # (N, 1 or C, H, W) in [0, 1]
    imputation: str
    parts: int  # the number of parts in which features are removed
    seed: int
    flipped: Callable[[], FlippedImages]  # of the block
    probes: Tensor = field(init=False)  # (N,) int64: model inputs that were run so far, without those of explainers
    curves: dict[str, RemovalCurve] = field(default_factory=dict)
    _adversarial: AdversarialCurvesResult | None = None
    _robustness: RobustnessResult | None = None

    def __post_init__(self) -> None:
        self.probes = torch.zeros(len(self.images), dtype=torch.int64, device="cpu")

    @property
    def model(self) -> nn.Module:
        return self.evaluator.model

    @property
    def images(self) -> Tensor:
        """(N, C, H, W), as the model receives them."""
        return self.evaluator.images

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the predictions."""
        return self.evaluator.labels

    def curve(self, order: Literal["deletion", "insertion"], imputation: str) -> RemovalCurve:
        """The output as the most relevant features are removed first, or put back first."""
        key = f"{order} {imputation}"
        if key not in self.curves:
            measure = deletion if order == "deletion" else insertion
            self.curves[key] = measure(
                self.model,
                self.images,
                self.relevance,
                labels=self.labels,
                imputation=imputation,
                steps=self.parts,
                batch_size=self.evaluator.options.batch_size,
            )
            self.probes += self.curves[key].probes
        return self.curves[key]

    def adversarial(self) -> AdversarialCurvesResult:
        if self._adversarial is None:
            self._adversarial = curves_towards(self.evaluator, self.flipped(), self.relevance, steps=self.parts)
            self.probes += self._adversarial.curves.probes
        return self._adversarial

    def robustness(self) -> RobustnessResult:
        if self._robustness is None:
            self._robustness = robustness_of_sets(self.evaluator, self.relevance)
            self.probes += self._robustness.probes
        return self._robustness


@dataclass(frozen=True)
class Measure:
    """One column.

    Args:
        of: the function that measures: one value for each image, (N,); NaN if there is none.
        title: its name on the page.
        better: which values are good.
        meaning: what it is, as a phrase.
        curves: how many curves it needs, each with one output for each part and one more; to estimate the time left.
        probes: about how many probes it takes in addition; for the same estimate.
        curve: the curve whose area it is, if a run can keep that curve.
    """

    of: Callable[[Explained], Tensor]
    title: str
    better: Literal["lower", "higher"]
    meaning: str
    curves: int = 0
    probes: float = 0
    curve: Callable[[Explained], RemovalCurve] | None = None


NEIGHBOURS = 3


def _continuity(explained: Explained) -> Tensor:
    """Continuity over three neighbours. A stage that multiplies by the image multiplies each map by its own pixels."""

    def relevance(attribution: Tensor, pixels: Tensor) -> Tensor:
        return explained.stage(attribution, pixels, explained.percentile)

    return continuity(
        explained.model,
        explained.images,
        explained.explainer,
        labels=explained.labels,
        neighbours=NEIGHBOURS,
        relevance=relevance,
        pixels=explained.network.pixels_of,
    ).continuity


def _region_perturbation(explained: Explained) -> Tensor:
    """Region perturbation with one draw of the noise, over the whole range of pixels."""
    low, high = (values.view(1, -1, 1, 1).to(explained.images) for values in explained.network.extremes())
    result = region_perturbation(
        explained.model,
        explained.images,
        explained.relevance,
        labels=explained.labels,
        repeats=1,
        low=low,
        high=high,
        seed=explained.seed,
        batch_size=explained.evaluator.options.batch_size,
    )
    explained.probes += result.probes
    return result.area_over_curve


def _flip_fraction(explained: Explained) -> Tensor:
    result = flip_fractions(explained.evaluator, explained.relevance, imputation=explained.imputation)
    explained.probes += result.probes
    return result.fraction


def _gain(explained: Explained) -> Tensor:
    insertion_, deletion_ = (explained.curve(which, explained.imputation) for which in ("insertion", "deletion"))
    return insertion_.area - deletion_.area


MEASURES: dict[str, Measure] = {
    "selectivity": Measure(
        lambda e: e.curve("deletion", "constant").area,
        "Selectivity",
        "lower",
        "the area under the network’s output while the most relevant features turn grey (P2 Algorithm 1)",
        curves=1,
        curve=lambda e: e.curve("deletion", "constant"),
    ),
    "continuity": Measure(
        _continuity,
        "Continuity",
        "lower",
        "how much a map changes at most where the photograph hardly does, to be compared at the same stage only (P2 "
        "section 2.3.1)",
        probes=4 * NEIGHBOURS,
    ),
    "deletion": Measure(
        lambda e: e.curve("deletion", e.imputation).area,
        "Deletion",
        "lower",
        "the area under the output while the most relevant features are replaced first",
        curves=1,
        curve=lambda e: e.curve("deletion", e.imputation),
    ),
    "insertion": Measure(
        lambda e: e.curve("insertion", e.imputation).area,
        "Insertion",
        "higher",
        "the area under the output as the most relevant features come back first",
        curves=1,
        curve=lambda e: e.curve("insertion", e.imputation),
    ),
    "relevance_gain": Measure(_gain, "Relevance gain", "higher", "insertion less deletion (SRG)", curves=2),
    "region_perturbation": Measure(
        _region_perturbation,
        "Region perturbation",
        "higher",
        "by how much the output falls on the average while 100 blocks of 9 × 9 pixels turn into noise, the most "
        "relevant first (AOPC)",
        probes=101,
    ),
    "flip_fraction": Measure(
        _flip_fraction,
        "Flip fraction",
        "lower",
        "the least share of the most relevant features whose replacement changes the prediction",
        probes=50,
    ),
    "robustness_s": Measure(
        lambda e: e.robustness().area_relevant,
        "Robustness-S",
        "lower",
        "how little perturbation of the most relevant features alone changes the prediction, an upper bound (l₂, the "
        "mean over sets of 10 % to 90 %)",
        probes=70,
    ),
    "robustness_complement": Measure(
        lambda e: e.robustness().area_complement,
        "Robustness of the rest",
        "higher",
        "the same of all other features",
        probes=70,
    ),
    "adversarial_morf": Measure(
        lambda e: e.adversarial().morf,
        "Adversarial MoRF",
        "lower",
        "the area under the output as the features of the nearest image that is taken for something else come in, the "
        "most relevant first",
        curves=2,
    ),
    "adversarial_lerf": Measure(
        lambda e: e.adversarial().lerf, "Adversarial LeRF", "higher", "the same, the least relevant first", curves=2
    ),
}
"""By name, which is also the column's."""
