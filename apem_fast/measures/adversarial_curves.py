"""Adversarial MoRF and LeRF: features are replaced by those of an adversarial image, which has another prediction.

A blurred or grey image is unlike the images that a network was trained on, and its output may fall for that reason
alone. An adversarial image looks like the original (Nieradzik et al. 2024, arXiv:2411.14946; arXiv:2605.16905). Here it
is the nearest one along the sign gradient, which the metric's engine finds; it is the same for every map of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor, nn

from apem_fast.callers import said_by
from apem_fast.measures.arguments import check_curve
from apem_fast.measures.pixel_flipping import DeletionResult, InsertionResult, RelevanceGainResult
from apem_fast.measures.removal import Output, outputs_while_removing, parts_of, ranks_of
from apem_fast.metric import Evaluator
from apem_fast.options import EngineOptions, documented
from apem_fast.probing.engine import Progress
from apem_fast.progress import shown
from apem_fast.results import Result, TableResult, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class FlippedImages(Result):
    """The nearest images along the sign gradient whose prediction differs."""

    images: Tensor  # (N, C, H, W), on the images' device
    flipped: Tensor  # (N,) bool, on the CPU; False: no such image up to max_epsilon
    probes: Tensor  # (N,) int64, on the CPU: model inputs that were run to find it


@dataclass(frozen=True, eq=False, repr=False)
class AdversarialCurvesResult(TableResult):
    """The output of N images as their features are replaced by those of their adversarial images."""

    curves: RelevanceGainResult  # MoRF as `deletion`, LeRF as `insertion`
    flipped: Tensor  # (N,) bool; False: no adversarial image was found, and both areas are NaN
    probes: Tensor  # (N,) int64: model inputs that were run, including the search for the adversarial image

    @property
    def morf(self) -> Tensor:
        """The area under the output with the most relevant features first, (N,) float64; small is good."""
        return self.curves.deletion.area.masked_fill(~self.flipped, torch.nan)

    @property
    def lerf(self) -> Tensor:
        """The area under the output with the least relevant features first, (N,) float64; large is good."""
        return self.curves.insertion.area.masked_fill(~self.flipped, torch.nan)

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Label, adversarial_morf, adversarial_lerf and probes."""
        areas = {"adversarial_morf": self.morf, "adversarial_lerf": self.lerf}
        return {"label": self.curves.deletion.labels, **areas, "probes": self.probes}

    def _said(self) -> list[str]:
        means = f"mean areas {self.morf.nanmean():.4g} (MoRF) and {self.lerf.nanmean():.4g} (LeRF)"
        return [
            counted(len(self.flipped), "image"),
            means,
            f"{int((~self.flipped).sum())} without an adversarial image",
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw both curves, as for `relevance_gain`. Without `ax`, into new axes."""
        return self.curves.plot(ax)


def flipped_images(evaluator: Evaluator, progress: Progress | None = None) -> FlippedImages:
    """The adversarial images of an evaluator's images, each found along one ray."""
    sign = evaluator.sign_gradient.to(evaluator.images.dtype)
    direction = sign / sign.abs().sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    found = evaluator.minimum_epsilon(direction, progress)
    return FlippedImages(evaluator.at(direction, found.epsilon), found.flipped, found.probes)


@documented()
@said_by("adversarial_curves")
def adversarial_curves(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    labels: Tensor | None = None,
    steps: int | None = 100,
    output: Output = "probability",
    progress: Progress | bool | None = None,
    **options: Unpack[EngineOptions],
) -> AdversarialCurvesResult:
    """MoRF and LeRF: the areas under the output as features are replaced by those of an adversarial image.

    The adversarial image is x + epsilon * sign / norm1(sign) at the least grid epsilon that changes the prediction.
    Each image takes 2 (steps + 1) probes, and those of one ray.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) of the images' dtype; any scale, only the order counts.
        labels: (N,) int64, the predictions, if known; an error if they are not the model's.
        steps: the number of (nearly) equal parts in which features are removed; None removes them one by one.
        output: the label's "probability", or its "logit".
        progress: True for a line on standard error, or a function called with (rays decided, rays in all, probes so
            far) while adversarial images are searched.
        options: see `apem_fast.options.Options`; for that search, and batch_size also for the curves.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    progress = shown(progress)
    steps, _ = check_curve(model, images, relevance, labels, steps, output, options.get("batch_size"))
    evaluator = Evaluator(model, images, labels=labels, **options)
    other = flipped_images(evaluator, progress)
    return curves_towards(evaluator, other, relevance, steps=steps, output=output)


def curves_towards(
    evaluator: Evaluator,
    other: FlippedImages,
    relevance: Tensor,
    *,
    steps: int | None = 100,
    output: Output = "probability",
) -> AdversarialCurvesResult:
    """The second half of `adversarial_curves`, so that many maps of the same images share their adversarial images."""
    removed = parts_of(relevance[0].numel(), steps)
    both = [
        outputs_while_removing(
            evaluator.model,
            evaluator.images,
            ranks_of(relevance, first),
            removed,
            other.images,
            labels=evaluator.labels,
            output=output,
            batch_size=evaluator.options.batch_size,
        )
        for first in ("most", "least")
    ]
    curves = RelevanceGainResult(DeletionResult(removed, *both[0]), InsertionResult(removed, *both[1]))
    return AdversarialCurvesResult(curves, other.flipped, other.probes + curves.probes)
