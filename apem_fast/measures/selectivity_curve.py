"""Explanation selectivity: how fast the output falls if the most relevant features are removed (P2 Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from apem_fast.callers import said_by
from apem_fast.measures.arguments import check_curve
from apem_fast.measures.imputation import checked_baseline
from apem_fast.measures.removal import Output, RemovalCurve, outputs_while_removing, parts_of, ranks_of
from apem_fast.progress import shown


@dataclass(frozen=True, eq=False, repr=False)
class SelectivityResult(RemovalCurve):
    """The output of N images as their most relevant features are removed. A small area is selective."""

    called: ClassVar[str] = "selectivity"


@said_by("selectivity")
def selectivity(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    labels: Tensor | None = None,
    steps: int | None = 100,
    output: Output = "probability",
    baseline: float | Tensor = 0.0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
) -> SelectivityResult:
    """The output f(x) as features are removed one by one, the most relevant first (P2 Algorithm 1).

    A feature has one value in the map: it is a pixel with all its channels for (N, 1, H, W), and one channel of a pixel
    for (N, C, H, W). Of features with equal relevance the one earlier in memory is removed first.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) of the images' dtype; any scale, only the order counts.
        labels: (N,) int64, the classes whose output is recorded; None takes the predictions.
        steps: the number of (nearly) equal parts in which features are removed; None removes them one by one, as in the
            algorithm, with one model input for each feature.
        output: what f is: the "probability" of the label, with an area in [0, 1], or its "logit".
        baseline: what a removed feature becomes, in the model's input space: a number, or a tensor that broadcasts to
            the images. 0 is the algorithm's x - {x_i}, and the mean colour of normalised images.
        batch_size: model inputs in a batch; None takes 8 on a CPU and 128 on a GPU. Running out of memory halves it.
        progress: True for a line on standard error, or a function called as progress(inputs run, inputs in all).

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    progress = shown(progress)
    steps, batch_size = check_curve(model, images, relevance, labels, steps, output, batch_size)
    filling = checked_baseline(baseline, images)
    removed = parts_of(relevance[0].numel(), steps)
    outputs, labels = outputs_while_removing(
        model,
        images,
        ranks_of(relevance),
        removed,
        filling,
        labels=labels,
        output=output,
        batch_size=batch_size,
        progress=progress,
    )
    return SelectivityResult(removed, outputs, labels)
