"""The definition of every operator in plain torch: slow, readable, obviously right.

The native kernels are tested against these functions, and if nothing is compiled these functions *are* the operators.
Their annotated signatures are also the operators' schemas (`csrc/ops.cpp` has the same in C++, and a test compares
them).

Arithmetic: float64 inputs are computed in float64, everything else in float32; l1 norms are always summed in float64
and then rounded once. No step is fused or reordered, so that native kernels can agree bit for bit wherever they do not
sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apem_fast.ops import checks
from apem_fast.papers import PERCENTILE


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an operator computes when its inputs have `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def image_format(images: Tensor) -> torch.memory_format:
    """Channels-last in gives channels-last out; anything else comes out contiguous."""
    if not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _as(value: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """The value in the dtype and memory format of an output, never sharing memory with an input."""
    return value.to(dtype).clone(memory_format=memory_format)


def _sum_channels(value: Tensor) -> Tensor:
    """The sum over channels, (N, C, H, W) -> (N, 1, H, W), in their order, so that every backend rounds alike."""
    total = value[:, :1]
    for c in range(1, value.shape[1]):
        total = total + value[:, c : c + 1]
    return total


# -- directed_relevance ------------------------------------------------------------------------------------------


def _unit_relevance(relevance: Tensor, channels: int, irrelevance: bool) -> tuple[Tensor, Tensor]:
    """The map or its inverse in arithmetic precision, and the l1 norm of the perturbation it makes: (N, 1, 1, 1)."""
    value = relevance.to(arithmetic_dtype(relevance.dtype))
    if irrelevance:
        value = 1 - value
    repeats = channels if relevance.shape[1] == 1 else 1  # a (N, 1, H, W) map is applied to every channel
    norm = value.abs().sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64) * repeats
    return value, norm.to(value.dtype)


def directed_relevance(relevance: Tensor, gradient: Tensor, irrelevance: bool = False) -> Tensor:
    checks.directed_relevance(relevance, gradient)
    value, norm = _unit_relevance(relevance, gradient.shape[1], irrelevance)
    direction = value / norm * gradient.sign().to(value.dtype)
    return _as(direction, relevance.dtype, image_format(gradient))


def directed_relevance_backward(
    grad_direction: Tensor, relevance: Tensor, gradient: Tensor, irrelevance: bool = False
) -> Tensor:
    """D = v / sum|v| * s, so dL/dv = (s g - sign(v) * sum(g d)) / sum|v|, summed over broadcast channels."""
    checks.directed_relevance_backward(grad_direction, relevance, gradient)
    if gradient.numel() == 0:
        return relevance.new_zeros(relevance.shape)
    value, norm = _unit_relevance(relevance, gradient.shape[1], irrelevance)
    directed = grad_direction.to(value.dtype) * gradient.sign().to(value.dtype)  # s g
    along = (directed * (value / norm)).sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64).to(value.dtype)
    repeats = gradient.shape[1] if relevance.shape[1] == 1 else 1
    if repeats > 1:
        directed = _sum_channels(directed)
    grad_value = (directed - value.sign() * along * repeats) / norm
    if irrelevance:
        grad_value = -grad_value
    return _as(grad_value, relevance.dtype, image_format(relevance))


# -- perturb -----------------------------------------------------------------------------------------------------


def _clamp(value: Tensor, lower: float | None, upper: float | None) -> Tensor:
    return value if lower is None and upper is None else value.clamp(lower, upper)


def _unclamped(images: Tensor, direction: Tensor, epsilon: Tensor) -> Tensor:
    arithmetic = arithmetic_dtype(images.dtype)
    steps = epsilon.to(torch.float64).to(arithmetic).expand(images.shape[0], epsilon.shape[-1])  # (N, K)
    return images.to(arithmetic)[:, None] + steps[:, :, None, None, None] * direction.to(arithmetic)[:, None]


def perturb(
    images: Tensor,
    direction: Tensor,
    epsilon: Tensor,
    lower: float | None = None,
    upper: float | None = None,
) -> Tensor:
    checks.perturb(images, direction, epsilon, lower, upper)
    perturbed = _clamp(_unclamped(images, direction, epsilon), lower, upper).to(images.dtype)  # (N, K, C, H, W)
    n, k, c, h, w = perturbed.shape
    flat = perturbed.reshape(n * k, c, h, w).clone(memory_format=image_format(images))
    return flat.view(n, k, c, h, w) if flat.is_contiguous() else flat.unflatten(0, (n, k))


def perturb_backward(
    grad_perturbed: Tensor,
    images: Tensor,
    direction: Tensor,
    epsilon: Tensor,
    lower: float | None = None,
    upper: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `images` and `direction`: sums over K in order of k, zero where the bound was active."""
    checks.perturb_backward(grad_perturbed, images, direction, epsilon, lower, upper)
    arithmetic = arithmetic_dtype(images.dtype)
    gradient = grad_perturbed.to(arithmetic)
    value = _unclamped(images, direction, epsilon)
    if lower is not None:
        gradient = torch.where(value < lower, 0, gradient)
    if upper is not None:
        gradient = torch.where(value > upper, 0, gradient)
    steps = epsilon.to(torch.float64).to(arithmetic).expand(images.shape[0], epsilon.shape[-1])
    grad_images = torch.zeros_like(images, dtype=arithmetic, memory_format=torch.contiguous_format)
    grad_direction = torch.zeros_like(grad_images)
    for k in range(epsilon.shape[-1]):
        grad_images = grad_images + gradient[:, k]
        grad_direction = grad_direction + steps[:, k, None, None, None] * gradient[:, k]
    memory_format = image_format(images)
    return _as(grad_images, images.dtype, memory_format), _as(grad_direction, images.dtype, memory_format)


# -- perturb_probes ----------------------------------------------------------------------------------------------


def perturb_probes(
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
    arithmetic = arithmetic_dtype(images.dtype)

    def per_probe(value: Tensor) -> Tensor:
        return value.to(torch.float64).to(arithmetic)[:, None, None, None]  # (M, 1, 1, 1)

    value = relevance[probe_map].to(arithmetic)  # (M, 1 or C, H, W)
    value = torch.where(value <= per_probe(probe_level), 0, value)
    value = torch.where(probe_irrelevance[:, None, None, None], 1 - value, value)
    direction = value / per_probe(norm) * gradient[probe_image].sign().to(arithmetic)
    perturbed = _clamp(images[probe_image].to(arithmetic) + per_probe(probe_epsilon) * direction, lower, upper)
    return _as(perturbed, dtype or images.dtype, image_format(images))


def perturb_probes_into(
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
    out.copy_(perturb_probes(*inputs, lower, upper, out.dtype))


# -- label_margin ------------------------------------------------------------------------------------------------


def _best_other(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Value and index (the lowest among equals) of the best logit that is not the label's."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    others = torch.where(others.isnan(), torch.inf, others)  # a NaN counts as the greatest, as in torch.argmax
    classes = torch.arange(logits.shape[1], device=logits.device).expand_as(others)
    classes = torch.where(classes == labels[:, None], logits.shape[1], classes)
    best = others.amax(dim=1, keepdim=True)
    index = torch.where(others == best, classes, logits.shape[1]).amin(dim=1)
    return logits.gather(1, index[:, None])[:, 0], index


def label_margin(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    checks.label_margin(logits, labels)
    if logits.shape[0] == 0:
        return logits.new_empty(0), labels.new_empty(0)
    value = logits.to(arithmetic_dtype(logits.dtype))
    margin = value.gather(1, labels[:, None])[:, 0] - _best_other(value, labels)[0]
    margin = torch.where(value.isnan().any(dim=1), torch.nan, margin)
    return margin.to(logits.dtype), value.argmax(dim=1)


def label_margin_backward(grad_margin: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """+g at the label, -g at the best other class."""
    checks.label_margin_backward(grad_margin, logits, labels)
    grad = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    if logits.shape[0] == 0:
        return grad
    _, other = _best_other(logits.to(arithmetic_dtype(logits.dtype)), labels)
    grad.scatter_(1, labels[:, None], grad_margin[:, None])
    return grad.scatter_(1, other[:, None], -grad_margin[:, None])


# -- probe_answers -----------------------------------------------------------------------------------------------


def probe_answers(logits: Tensor, labels: Tensor, above: Tensor | None = None) -> Tensor:
    checks.probe_answers(logits, labels, above)
    others = logits if above is None else logits.masked_fill(above, -torch.inf)
    margin, predicted = label_margin(others, labels)
    greatest = logits.abs().amax(dim=1)
    return torch.stack([margin.double(), (predicted != labels).double(), greatest.double()])


# -- first_flip --------------------------------------------------------------------------------------------------


def first_flip(predicted: Tensor, labels: Tensor, epsilon: Tensor) -> Tensor:
    checks.first_flip(predicted, labels, epsilon)
    if predicted.numel() == 0:
        return epsilon.new_full((predicted.shape[0],), torch.inf)
    flipped = predicted != labels[:, None]  # (R, K)
    return torch.where(flipped, epsilon.expand_as(predicted), torch.inf).amin(dim=1)


# -- relevance_map -----------------------------------------------------------------------------------------------


def percentile_of(values: Tensor, percentile: float) -> Tensor:
    """`numpy.percentile(row, percentile)` (linear interpolation) of each row of (N, L), interpolated in float64."""
    position = percentile / 100 * (values.shape[1] - 1)
    below = min(int(position), values.shape[1] - 1)
    above = min(below + 1, values.shape[1] - 1)
    fraction = position - below
    order = values.sort(dim=1).values
    low, high = order[:, below].double(), order[:, above].double()
    return (low if fraction == 0 else low + (high - low) * fraction).to(values.dtype)


def relevance_map(
    attribution: Tensor,
    images: Tensor | None = None,
    percentile: float | None = PERCENTILE,
    channels: str = "sum",
) -> Tensor:
    checks.relevance_map(attribution, images, percentile, channels)
    n = attribution.shape[0]
    out_channels = 1 if channels == "sum" else attribution.shape[1]
    out_shape = (n, out_channels, *attribution.shape[2:])
    if attribution.numel() == 0:
        return attribution.new_zeros(out_shape)
    value = attribution.to(arithmetic_dtype(attribution.dtype)).abs()
    missing = value.isnan().reshape(n, -1).any(dim=1)
    if percentile is not None:
        value = torch.minimum(value, percentile_of(value.reshape(n, -1), percentile)[:, None, None, None])
    if images is not None:
        value = value * images.to(value.dtype)
    if channels == "sum":
        value = _sum_channels(value)
    low = value.reshape(n, -1).amin(dim=1)[:, None, None, None]
    high = value.reshape(n, -1).amax(dim=1)[:, None, None, None]
    # A constant map ranks no pixel above another: it becomes 0 if there is no attribution at all, else 0.5.
    flat = torch.where(low == 0, 0.0, 0.5).to(value.dtype)
    relevance = torch.where(high == low, flat, (value - low) / (high - low))
    relevance = torch.where(missing[:, None, None, None], torch.nan, relevance)
    return _as(relevance, attribution.dtype, image_format(attribution))


# -- attack_penalty ----------------------------------------------------------------------------------------------


def _neighbour_differences(perturbation: Tensor) -> tuple[Tensor, Tensor]:
    """E[i, j] - E[i+1, j] and E[i, j] - E[i, j+1] for i < height and j < width, the range of P3 equation 24."""
    corner = perturbation[:, :, :-1, :-1]
    return corner - perturbation[:, :, 1:, :-1], corner - perturbation[:, :, :-1, 1:]


def attack_penalty(perturbed: Tensor, original: Tensor, tv: float, zero: float, diff: float) -> tuple[Tensor, Tensor]:
    checks.attack_penalty(perturbed, original)
    arithmetic = arithmetic_dtype(perturbed.dtype)
    perturbation = perturbed.to(arithmetic) - original.to(arithmetic)
    below, right = _neighbour_differences(perturbation)
    image = (1, 2, 3)
    variation = below.abs().sum(image, dtype=torch.float64) + right.abs().sum(image, dtype=torch.float64)
    changed = (perturbation != 0).any(dim=1).sum(dim=(1, 2)).double()
    squared = (perturbation * perturbation).sum(image, dtype=torch.float64) / max(perturbed[:1].numel(), 1)
    penalty = tv * variation + zero * changed + diff * squared
    return penalty, torch.stack([variation, changed, squared], dim=1)


def attack_penalty_backward(
    grad_penalty: Tensor, perturbed: Tensor, original: Tensor, tv: float, zero: float, diff: float
) -> Tensor:
    """The derivative with respect to `perturbed`. The count of changed pixels is piecewise constant: it adds none."""
    checks.attack_penalty_backward(grad_penalty, perturbed, original)
    arithmetic = arithmetic_dtype(perturbed.dtype)
    perturbation = perturbed.to(arithmetic) - original.to(arithmetic)
    below, right = (difference.sign() for difference in _neighbour_differences(perturbation))
    signs = torch.zeros_like(perturbation)
    signs[:, :, :-1, :-1] += below + right
    signs[:, :, 1:, :-1] -= below
    signs[:, :, :-1, 1:] -= right
    variation = (grad_penalty * tv).to(arithmetic)[:, None, None, None]
    squared = (grad_penalty * (2 * diff / max(perturbed[:1].numel(), 1))).to(arithmetic)[:, None, None, None]
    return _as(variation * signs + squared * perturbation, perturbed.dtype, image_format(perturbed))


# -- attack_step -------------------------------------------------------------------------------------------------


def attack_step(
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
    arithmetic = arithmetic_dtype(perturbed.dtype)
    value = perturbed.to(arithmetic)
    step = step_size * gradient.to(arithmetic)
    if previous is not None:
        step = step + damping * previous.to(arithmetic)
    moved = _clamp(value - step, lower, upper)
    if zero > 0 and original is not None:
        start = original.to(arithmetic)
        perturbation = moved - start
        squared = perturbation[:, :1] * perturbation[:, :1]
        for c in range(1, perturbation.shape[1]):  # in order, so that every backend rounds alike
            squared = squared + perturbation[:, c : c + 1] * perturbation[:, c : c + 1]
        moved = torch.where(squared <= 2 * step_size * zero, start, moved)
    if region is not None:
        moved = torch.where(region, moved, value)
    return _as(moved, perturbed.dtype, image_format(perturbed))


# -- zero_levels -------------------------------------------------------------------------------------------------


def zero_levels(relevance: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    checks.zero_levels(relevance, threshold)
    arithmetic = arithmetic_dtype(relevance.dtype)
    n, levels = relevance.shape[0], threshold.shape[-1]
    level = threshold.to(arithmetic).expand(n, levels)[:, :, None, None, None]
    value = relevance.to(arithmetic)[:, None]
    zeroed = torch.where(value <= level, 0, value)  # (N, L, C, H, W)
    norms = [values.abs().sum(dim=(2, 3, 4), dtype=torch.float64) for values in (zeroed, 1 - zeroed)]
    flat = _as(zeroed.reshape(n * levels, *relevance.shape[1:]), relevance.dtype, image_format(relevance))
    return flat.unflatten(0, (n, levels)), torch.stack(norms, dim=2)


# -- saliency_map ------------------------------------------------------------------------------------------------


def saliency_map(original: Tensor, perturbed: Tensor) -> Tensor:
    checks.saliency_map(original, perturbed)
    n, channels, height, width = original.shape
    if original.numel() == 0:
        return original.new_zeros((n, 1, height, width))  # without channels nothing changed
    arithmetic = arithmetic_dtype(original.dtype)
    difference = original.to(arithmetic) - perturbed.to(arithmetic)
    squared = difference[:, :1] * difference[:, :1]
    for c in range(1, channels):  # in order, so that every backend rounds alike
        squared = squared + difference[:, c : c + 1] * difference[:, c : c + 1]
    # Rounded once, like the kernels' square root: torch's own in float32 may be wrong in the last digit on some
    # processors, which the rescaling of a nearly constant map would enlarge.
    distance = squared.double().sqrt().to(arithmetic)
    low = distance.reshape(n, -1).amin(dim=1)[:, None, None, None]  # NaN where a pixel is NaN
    high = distance.reshape(n, -1).amax(dim=1)[:, None, None, None]
    # A constant map ranks no pixel above another: it becomes 0 if nothing changed at all, else 0.5.
    flat = torch.where(low == 0, 0.0, 0.5).to(arithmetic)
    saliency = torch.where(high == low, flat, (distance - low) / (high - low))
    return _as(saliency, original.dtype, image_format(original))
