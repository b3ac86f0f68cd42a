"""The metric as functions: one call for one set of maps, or for one direction."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from apem_fast.callers import said_by
from apem_fast.metric.evaluator import Evaluator
from apem_fast.metric.results import ApemResult, EpsilonResult
from apem_fast.options import EngineOptions, documented
from apem_fast.probing.engine import Progress


@documented()
@said_by("apem")
def apem(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    labels: Tensor | None = None,
    target: int | Tensor | None = None,
    on_bad_map: str = "raise",
    progress: Progress | bool | None = None,
    **options: Unpack[EngineOptions],
) -> ApemResult:
    """APEM of `relevance` for each image: epsilon_plus - epsilon_minus (P1 section III-A, equations 1 and 2).

    epsilon_minus is the least grid epsilon at which the prediction for ``x + epsilon * R / norm1(R) * sign`` differs
    from that for x. Here sign is the sign of the gradient of the cross entropy of the model's own prediction.
    epsilon_plus is the same for 1 - R.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes), or what `Classifier` reads as such.
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W), applied to every channel, or (N, C, H, W); in [0, 1], none all 0 or all 1.
        labels: the predictions, if known; an error if they are not the model's.
        target: the class that the maps explain, if it is not the prediction: one for all images, or (N,) int64. Classes
            whose logits are at least as great as the target's in the unperturbed image are then left out: a flip means
            that the target is no longer above all the classes that it was above, and the sign gradient is that of its
            cross entropy among them. For the prediction itself this is the definition above. To follow another scalar
            whose sign decides (a similarity minus a threshold, a pixel's margin, a detector's score), wrap the model:
            `Classifier(model, output=...)`.
        on_bad_map: what happens to a map that is all 0 or all 1, and so leaves no ray, or that has NaN or infinity:
            "raise" an error, or "flag" it: its epsilons and score are NaN, `measured` is False, and means leave it out.
        progress: True for a line on standard error, or a function called with (rays decided, rays in all, probes so
            far).
        options: see `apem_fast.options.Options`.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    evaluator = Evaluator(model, images, labels=labels, target=target, **options)
    return evaluator.apem({"relevance": relevance}, progress, on_bad_map=on_bad_map)["relevance"]


@documented()
@said_by("minimum_epsilon")
def minimum_epsilon(
    model: nn.Module,
    images: Tensor,
    direction: Tensor,
    *,
    labels: Tensor | None = None,
    target: int | Tensor | None = None,
    progress: Progress | bool | None = None,
    **options: Unpack[EngineOptions],
) -> EpsilonResult:
    """The least grid epsilon at which the prediction for ``x + epsilon * direction`` differs from that for x.

    Args:
        direction: (N, C, H, W), finite, not all 0. Any scale is allowed; with l1 norm 1, epsilons are l1 norms.
        options: see `apem_fast.options.Options`.

    The other arguments, and the errors, are those of `apem`.
    """
    evaluator = Evaluator(model, images, labels=labels, target=target, **options)
    return evaluator.minimum_epsilon(direction, progress)
