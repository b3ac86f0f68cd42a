"""Shapes, dtypes and memory formats of every operator's outputs, for torch.compile, export and meta tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from apem_fast.ops import checks, load  # noqa: F401  (load registers the operators)
from apem_fast.ops.reference import image_format
from apem_fast.papers import PERCENTILE

register_fake = torch.library.register_fake


def _like(images: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or images.dtype, device=images.device, memory_format=image_format(images))


@register_fake("apem_fast::directed_relevance")
def _(relevance: Tensor, gradient: Tensor, irrelevance: bool = False) -> Tensor:
    checks.directed_relevance(relevance, gradient)
    return _like(gradient, tuple(gradient.shape), relevance.dtype)


@register_fake("apem_fast::directed_relevance_backward")
def _(grad_direction: Tensor, relevance: Tensor, gradient: Tensor, irrelevance: bool = False) -> Tensor:
    checks.directed_relevance_backward(grad_direction, relevance, gradient)
    return _like(relevance, tuple(relevance.shape))


@register_fake("apem_fast::perturb")
def _(
    images: Tensor, direction: Tensor, epsilon: Tensor, lower: float | None = None, upper: float | None = None
) -> Tensor:
    checks.perturb(images, direction, epsilon, lower, upper)
    n, k = images.shape[0], epsilon.shape[-1]
    return _like(images, (n * k, *images.shape[1:])).unflatten(0, (n, k))


@register_fake("apem_fast::perturb_backward")
def _(
    grad_perturbed: Tensor,
    images: Tensor,
    direction: Tensor,
    epsilon: Tensor,
    lower: float | None = None,
    upper: float | None = None,
) -> tuple[Tensor, Tensor]:
    checks.perturb_backward(grad_perturbed, images, direction, epsilon, lower, upper)
    return _like(images, tuple(images.shape)), _like(images, tuple(images.shape))


@register_fake("apem_fast::perturb_probes")
def _(
    images: Tensor,
    relevance: Tensor,
    gradient: Tensor,
    norm: Tensor,
    probe_image: Tensor,
    probe_map: Tensor,
    probe_irrelevance: Tensor,
    probe_epsilon: Tensor,
    probe_level: Tensor,
    lower: float | None = None,
    upper: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    checks.perturb_probes(
        images,
        relevance,
        gradient,
        norm,
        probe_image,
        probe_map,
        probe_irrelevance,
        probe_epsilon,
        probe_level,
        lower,
        upper,
        dtype,
    )
    return _like(images, (norm.shape[0], *images.shape[1:]), dtype)


@register_fake("apem_fast::perturb_probes_into")
def _(
    out: Tensor,
    images: Tensor,
    relevance: Tensor,
    gradient: Tensor,
    norm: Tensor,
    probe_image: Tensor,
    probe_map: Tensor,
    probe_irrelevance: Tensor,
    probe_epsilon: Tensor,
    probe_level: Tensor,
    lower: float | None = None,
    upper: float | None = None,
) -> None:
    inputs = images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance, probe_epsilon, probe_level
    checks.perturb_probes_into(out, *inputs, lower, upper)


@register_fake("apem_fast::label_margin")
def _(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    checks.label_margin(logits, labels)
    return logits.new_empty(logits.shape[0]), labels.new_empty(logits.shape[0])


@register_fake("apem_fast::label_margin_backward")
def _(grad_margin: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    checks.label_margin_backward(grad_margin, logits, labels)
    return logits.new_empty(logits.shape)


@register_fake("apem_fast::probe_answers")
def _(logits: Tensor, labels: Tensor, above: Tensor | None = None) -> Tensor:
    checks.probe_answers(logits, labels, above)
    return logits.new_empty((3, logits.shape[0]), dtype=torch.float64)


@register_fake("apem_fast::first_flip")
def _(predicted: Tensor, labels: Tensor, epsilon: Tensor) -> Tensor:
    checks.first_flip(predicted, labels, epsilon)
    return epsilon.new_empty(predicted.shape[0])


@register_fake("apem_fast::relevance_map")
def _(
    attribution: Tensor,
    images: Tensor | None = None,
    percentile: float | None = PERCENTILE,
    channels: str = "sum",
) -> Tensor:
    checks.relevance_map(attribution, images, percentile, channels)
    n, c, h, w = attribution.shape
    return _like(attribution, (n, 1 if channels == "sum" else c, h, w))


@register_fake("apem_fast::attack_penalty")
def _(perturbed: Tensor, original: Tensor, tv: float, zero: float, diff: float) -> tuple[Tensor, Tensor]:
    checks.attack_penalty(perturbed, original)
    n = perturbed.shape[0]
    return perturbed.new_empty(n, dtype=torch.float64), perturbed.new_empty((n, 3), dtype=torch.float64)


@register_fake("apem_fast::attack_penalty_backward")
def _(grad_penalty: Tensor, perturbed: Tensor, original: Tensor, tv: float, zero: float, diff: float) -> Tensor:
    checks.attack_penalty_backward(grad_penalty, perturbed, original)
    return _like(perturbed, tuple(perturbed.shape))


@register_fake("apem_fast::attack_step")
def _(
    perturbed: Tensor,
    gradient: Tensor,
    previous: Tensor | None,
    region: Tensor | None,
    step_size: float,
    damping: float,
    lower: float | None = None,
    upper: float | None = None,
    original: Tensor | None = None,
    zero: float = 0.0,
) -> Tensor:
    checks.attack_step(perturbed, gradient, previous, region, lower, upper, original, zero)
    return _like(perturbed, tuple(perturbed.shape))


@register_fake("apem_fast::zero_levels")
def _(relevance: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    checks.zero_levels(relevance, threshold)
    n, levels = relevance.shape[0], threshold.shape[-1]
    zeroed = _like(relevance, (n * levels, *relevance.shape[1:])).unflatten(0, (n, levels))
    return zeroed, relevance.new_empty((n, levels, 2), dtype=torch.float64)


@register_fake("apem_fast::saliency_map")
def _(original: Tensor, perturbed: Tensor) -> Tensor:
    checks.saliency_map(original, perturbed)
    n, _, h, w = original.shape
    return _like(original, (n, 1, h, w))
