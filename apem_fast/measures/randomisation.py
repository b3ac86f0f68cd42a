"""Randomisation tests: an explanation should depend on the network's parameters and on its training data.

Some methods that are used as explanations hardly depend on either (P2 section 2.2). An edge detector depends on
neither.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.explain import Explainer
from apem_fast.measures.arguments import (
    Explain,
    check_classes,
    check_model_and_images,
    explainer_of,
)
from apem_fast.metric import Evaluator
from apem_fast.progress import shown
from apem_fast.randomised import parts_of, randomised_stages
from apem_fast.relevance import relevance_map
from apem_fast.results import TableResult, counted
from apem_fast.results.plots import GREY, draw_curves
from apem_fast.running.clean import predictions_of
from apem_fast.running.undisturbed import undisturbed
from apem_fast.seeding import seeded
from apem_fast.similarity import gradient_histogram_correlation, rank_correlation, structural_similarity
from apem_fast.validation import without_ray

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SIMILARITIES = ("rank_correlation", "absolute_rank_correlation", "structural_similarity", "gradient_histograms")


@dataclass(frozen=True, eq=False, repr=False)
class RandomisationResult(TableResult):
    """The similarity of explanations to the originals, for N images over S stages (tensors are on the CPU).

    Once everything is randomised, a similarity near 0 is good: similarity that remains does not come from the network.
    """

    stages: tuple[str, ...]  # what was randomised, in this order; ("labels",) for data randomisation
    rank_correlation: Tensor  # (S, N) float64: Spearman's, of the signed attributions; NaN if one is constant
    absolute_rank_correlation: Tensor  # (S, N) float64: the same for their absolute values
    structural_similarity: Tensor  # (S, N) float64: SSIM of the relevance maps, in [-1, 1]
    gradient_histograms: Tensor  # (S, N) float64: Pearson's correlation of the maps' HOG; NaN if a map has none
    labels: Tensor  # (N,) int64: the classes that were explained
    score: Tensor | None = None  # (S, N) float64: APEM of the stage's maps for the original network; NaN: no ray
    original_score: Tensor | None = None  # (N,) float64: APEM of the original maps

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """One row for each stage and image."""
        stages, images = self.rank_correlation.shape
        columns: dict[str, Tensor | Sequence[Any]] = {
            "stage": [stage for stage in self.stages for _ in range(images)],
            "image": list(range(images)) * stages,
            "label": self.labels.repeat(stages),
        }
        for name in (*SIMILARITIES, "score"):
            values = getattr(self, name)
            if values is not None:
                columns[name] = values.flatten()
        return columns

    def _said(self) -> list[str]:
        last = float(self.rank_correlation[-1].nanmean())
        sizes = [counted(self.rank_correlation.shape[1], "image"), counted(len(self.stages), "stage")]
        return [*sizes, f"mean rank correlation {last:.3g} at the last, {self.stages[-1]}"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the rank correlation of each image over the stages, and the mean. Without `ax`, into new axes."""
        stages = range(len(self.stages))
        axes = {"xlabel": "randomised up to", "ylabel": "rank correlation with the original"}
        ax = draw_curves(ax, stages, self.rank_correlation.T, **axes)
        ax.set_xticks(stages, self.stages, rotation=45, ha="right")
        ax.axhline(0, color=GREY, linewidth=1)
        return ax


@said_by("parameter_randomisation")
def parameter_randomisation(
    model: nn.Module,
    images: Tensor,
    explain: Explain,
    *,
    mode: Literal["cascading", "independent"] = "cascading",
    stages: Sequence[str] | None = None,
    labels: Tensor | None = None,
    relevance: Callable[[Tensor], Tensor] = relevance_map,
    apem: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> RandomisationResult:
    """Re-initialises a copy of the network part by part, and compares its explanations with the original's.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes); only a copy of it is changed.
        images: (N, C, H, W) float32 or float64 as the model receives them.
        explain: an explanation method, or a function (model, images, labels) -> attribution.
        mode: "cascading" randomises each part in addition to those before it, "independent" one part at a time.
        stages: names of submodules in the order in which they are randomised, such as ["fc", "layer4", "layer3"];
            None takes every layer with parameters, from the output to the input.
        labels: (N,) int64, the classes to explain at all stages; None takes the original network's predictions.
        relevance: makes a map in [0, 1] of an attribution, for the structural similarity and APEM.
        apem: options of `Evaluator`, such as {"max_epsilon": 1024}: APEM of every stage's maps is then measured on the
            original network. {} takes the defaults; None does not measure it.
        seed: of the new parameters; the global random state is not changed.
        progress: True for a line on standard error, or a function called as progress(stages done, stages in all).

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    progress = shown(progress)
    if mode not in ("cascading", "independent"):
        raise ValueError(sentence(f'mode must be "cascading" or "independent" (got {mode!r})'))
    if isinstance(stages, str):
        raise TypeError(sentence("stages must be a list of names (got str)"))
    original = _Original(model, images, explain, labels, relevance, apem)
    randomised = copy.deepcopy(model)
    total = len(parts_of(randomised, stages))
    rows = []
    names = []
    for name in randomised_stages(randomised, independent=mode == "independent", names=stages, seed=seed):
        names.append(name)
        rows.append(original.compared_with(randomised))
        if progress is not None:
            progress(len(rows), total)
    return original.result(names, rows)


@said_by("data_randomisation")
def data_randomisation(
    model: nn.Module,
    randomised: nn.Module | Callable[[nn.Module], nn.Module],
    images: Tensor,
    explain: Explain,
    *,
    labels: Tensor | None = None,
    relevance: Callable[[Tensor], Tensor] = relevance_map,
    apem: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> RandomisationResult:
    """Compares the network's explanations with those of the same network trained on permuted labels.

    Args:
        randomised: the network trained on permuted labels, in eval mode; or a function that trains one. The function
            gets a copy of `model` in training mode, with all layers re-initialised, and returns it trained.
            Initialisation and training draw their random numbers from `seed`; the global random state is not changed.
            `labels[torch.randperm(len(labels))]` permutes labels.

    The other arguments, and the errors, are those of `parameter_randomisation`; the result has one stage, "labels".
    """
    original = _Original(model, images, explain, labels, relevance, apem)
    if not callable(randomised):
        raise TypeError(
            sentence(f"randomised must be a network or a function that trains one (got {type(randomised).__name__})")
        )
    if not isinstance(randomised, nn.Module):
        blank = copy.deepcopy(model)
        for _ in randomised_stages(blank, seed=seed):
            pass
        with torch.enable_grad(), seeded(seed, *{value.device for value in model.parameters()}):
            trained = randomised(blank.train())
        if not isinstance(trained, nn.Module):
            raise TypeError(sentence(f"randomised must return the trained network (got {type(trained).__name__})"))
        randomised = trained.eval()
    validation.model(randomised, "randomised")
    return original.result(["labels"], [original.compared_with(randomised)])


@dataclass(frozen=True)
class _Row:
    """One stage; all are (N,)."""

    rank: Tensor
    absolute_rank: Tensor
    structural: Tensor
    histograms: Tensor
    score: Tensor | None


class _Original:
    """The explanations of the original network, with which the others are compared."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        explain: Explain,
        labels: Tensor | None,
        relevance: Callable[[Tensor], Tensor],
        apem: Mapping[str, Any] | None,
    ):
        check_model_and_images(model, images)
        check_classes(labels, images)
        self.explainer: Explainer = explainer_of(explain)
        if not callable(relevance):
            raise TypeError(sentence(f"relevance must be a function (got {type(relevance).__name__})"))
        self.relevance = relevance
        self.images = images.detach()
        with undisturbed(model, images):
            with torch.no_grad():
                predictions = predictions_of(model, self.images)
            self.labels = predictions if labels is None else labels.to(self.images.device)
            self.attribution = self.explainer(model, self.images, self.labels)
        self.map = relevance(self.attribution)
        self.evaluator = None if apem is None else Evaluator(model, self.images, labels=labels, **apem)
        self.score = self._score(self.map)

    def compared_with(self, randomised: nn.Module) -> _Row:
        with undisturbed(randomised, self.images):
            other = self.explainer(randomised, self.images, self.labels)
        map_ = self.relevance(other)
        return _Row(
            rank_correlation(self.attribution, other),
            rank_correlation(self.attribution.abs(), other.abs()),
            structural_similarity(self.map, map_),
            gradient_histogram_correlation(self.map, map_),
            self._score(map_),
        )

    def result(self, names: Sequence[str], rows: Sequence[_Row]) -> RandomisationResult:
        measured = self.evaluator is not None
        return RandomisationResult(
            tuple(names),
            torch.stack([row.rank for row in rows]),
            torch.stack([row.absolute_rank for row in rows]),
            torch.stack([row.structural for row in rows]),
            torch.stack([row.histograms for row in rows]),
            self.labels.detach().cpu(),
            torch.stack([row.score for row in rows if row.score is not None]) if measured else None,
            self.score,
        )

    def _score(self, maps: Tensor) -> Tensor | None:
        """The scores, (N,). A map that is all 0 or all 1 has no ray, so its score is NaN."""
        if self.evaluator is None:
            return None
        zero, one = without_ray(maps)
        blank = (zero | one).cpu()
        stand_in = maps.clone()
        stand_in[blank] = 0.5  # any map will do, since its result is not used
        score = self.evaluator.apem({"relevance": stand_in})["relevance"].score
        return score.masked_fill(blank, torch.nan)
