"""Checks of the measures' arguments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import sentence
from apem_fast.explain import Explainer, from_callable
from apem_fast.running.outputs import FEW, ModelOutputError, check_scale, logits_of
from apem_fast.running.repeated import require_repeatable
from apem_fast.running.undisturbed import undisturbed
from apem_fast.validation.ways_out import of_method

Explain = Explainer | Callable[[nn.Module, Tensor, Tensor], Tensor]
"""An explanation method, or a function (model, images, labels) -> attribution."""


def check_model_and_images(model: nn.Module, images: Tensor, batch_size: int | None = None) -> None:
    validation.model(model)
    validation.images(images, model)
    require_repeatable(model, images, in_batches=batch_size != 1)
    with undisturbed(model, images), torch.no_grad():
        few = torch.cat([logits_of(model, image) for image in images[:FEW].detach().split(1)])
    if not bool(few.isfinite().all()):
        raise ModelOutputError("model must return finite logits (got NaN or infinity for an unperturbed image)")
    check_scale(model, few)  # of images as they are: what is left of them may look alike throughout


def check_classes(labels: Tensor | None, images: Tensor) -> None:
    """Raises unless labels are classes, (N,) int64; they need not be the predictions."""
    if labels is None:
        return
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        came = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(
            sentence(f"labels must be int64 of shape ({len(images)},) (got {came.removeprefix('torch.')})")
        )


def explainer_of(explain: Explain) -> Explainer:
    """The method itself, or a function as a method, whose results are checked and which keeps the random state."""
    if isinstance(explain, Explainer):
        return explain
    if not callable(explain):
        came = f"{type(explain).__name__}){of_method(explain)}"
        raise TypeError(sentence(f"explain must be an explanation method or a function (got {came}"))
    return from_callable(explain)


def check_curve(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    labels: Tensor | None,
    steps: int | None,
    output: str,
    batch_size: int | None,
) -> tuple[int | None, int | None]:
    """Checks the common arguments of measures that remove features by relevance; returns steps and batch_size."""
    batch_size = validation.whole_or_none("batch_size", batch_size)
    check_model_and_images(model, images, batch_size)
    validation.map_of_images("relevance", relevance, images)
    check_classes(labels, images)
    if steps is not None:
        steps = validation.whole("steps", steps)
    if output not in ("probability", "logit"):
        raise ValueError(sentence(f'output must be "probability" or "logit" (got {output!r})'))
    return steps, batch_size
