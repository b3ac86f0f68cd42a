"""The operators as documented Python functions: `apem_fast.ops.NAME(...)` is `torch.ops.apem_fast.NAME(...)`.

Shapes: N images, C channels, K epsilons, M probes, R rays. Every operator takes float32 and float64, and float16 and
bfloat16 with float32 arithmetic; any strides; channels-last in gives channels-last out. Errors are RuntimeErrors of
one sentence that name the operator, the argument, what was expected and what came. Epsilon always lives in the
space of the tensor that the model receives: after normalisation, if the images were normalised.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from apem_fast.ops import load  # noqa: F401  (registers the operators)
from apem_fast.papers import PERCENTILE

_ops = torch.ops.apem_fast


def directed_relevance(relevance: Tensor, gradient: Tensor, irrelevance: bool = False) -> Tensor:
    """The direction of a ray: R / norm1(R) * sign(gradient) (P1 equation 1).

    It is for your own searches; `apem` never stores directions, and calls `perturb_probes`.

    Args:
        relevance: (N, 1, H, W), applied to every channel, or (N, C, H, W); values in [0, 1].
        gradient: (N, C, H, W), of the dtype of `relevance`, or int8 signs.
        irrelevance: use 1 - R instead of R.

    Returns:
        (N, C, H, W) of the dtype of `relevance`. The l1 norm is that of the applied perturbation, after the map is
        broadcast to the channels: if no gradient is 0, norm1 of each image's direction is 1. A map that is 0 everywhere
        has no direction and gives NaN. Differentiable in `relevance`.
    """
    return _ops.directed_relevance(relevance, gradient, irrelevance)


def perturb(
    images: Tensor,
    direction: Tensor,
    epsilon: Tensor,
    lower: float | None = None,
    upper: float | None = None,
) -> Tensor:
    """The perturbed images x' = x + epsilon * direction (P1 section III-A) for K epsilons at once.

    It is for your own searches; `apem` calls `perturb_probes`.

    Args:
        images: (N, C, H, W).
        direction: (N, C, H, W), of the dtype of `images`.
        epsilon: (K,), or (N, K) for different epsilons for each image; any floating dtype.
        lower, upper: optional bounds to which x' is clamped; the papers have none.

    Returns:
        (N, K, C, H, W) of the dtype of `images`. Differentiable in `images` and `direction`.
    """
    return _ops.perturb(images, direction, epsilon, lower, upper)


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
    """The M model inputs of one batch, each with its own image, map, polarity, filter level and epsilon.

    Probe m is ``images[i] + epsilon * (v / norm[m] * sign(gradient[i]))`` with ``i = probe_image[m]``, and v the map
    ``relevance[probe_map[m]]``, its values of at most ``probe_level[m]`` set to 0, then inverted to ``1 - v`` where
    ``probe_irrelevance[m]``. The arithmetic is that of `perturb` of `directed_relevance`, bit for bit in float32 and
    float64, but no direction is ever stored.

    Args:
        images: (N, C, H, W).
        relevance: (maps, 1, H, W) or (maps, C, H, W), of the dtype of `images`.
        gradient: (N, C, H, W), of the dtype of `images`, or int8 signs (a quarter of the memory traffic).
        norm: (M,) float64, the l1 norm of what each probe applies (after level, polarity and broadcast).
        probe_image, probe_map: (M,) int64, rows of `images` and of `relevance`. An index out of range is an error
            on the CPU; on CUDA, where checking would wait for the device, that probe comes out as NaN.
        probe_irrelevance: (M,) bool.
        probe_epsilon: (M,) float64.
        probe_level: (M,) float64; 0 filters nothing.
        lower, upper: optional bounds to which the result is clamped.
        dtype: of the result: that of `images` (the default), float16 or bfloat16.

    Returns:
        (M, C, H, W).
    """
    return _ops.perturb_probes(
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
    """Writes the result of `perturb_probes`, bit for bit, into an existing tensor.

    That can be the input of a captured CUDA graph, which saves one read and one write of the whole batch.

    Args:
        out: (M, C, H, W), contiguous or channels-last, and sharing no memory with the other arguments; of the dtype of
            `images`, float16 or bfloat16. It is fastest if images, maps and gradients have its memory format; others
            are converted in every call.
        images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance, probe_epsilon, probe_level: as of
            `perturb_probes`.
        lower, upper: optional bounds to which the result is clamped.

    Raises:
        NotImplementedError: an argument requires gradients while they are recorded. There is no derivative, and no
            result whose backward pass could raise an error.
    """
    _ops.perturb_probes_into(
        out,
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
    )


def label_margin(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The margin of each prediction, the label's logit minus the best other logit, and the predicted class.

    Args:
        logits: (N, classes), at least two classes.
        labels: (N,) int64.

    Returns:
        margin (N,) of the dtype of `logits`, and the predicted class (N,) int64: the lowest among equals, so a
        margin of 0 can go either way. A NaN among the logits makes the margin NaN. Differentiable in `logits`.
    """
    return _ops.label_margin(logits, labels)


def probe_answers(logits: Tensor, labels: Tensor, above: Tensor | None = None) -> Tensor:
    """Everything that a search needs from a batch, in one tensor, which is copied to the host at once.

    Args:
        logits: (M, classes), at least two classes.
        labels: (M,) int64.
        above: (M, classes) bool, classes that are left out of margin and flip; none by default.

    Returns:
        (3, M) float64: the margin of `label_margin`; 1 if the predicted class is not the label, else 0; and the
        greatest magnitude of a logit, including those that are left out. NaN if a logit is.
    """
    return _ops.probe_answers(logits, labels, above)


def first_flip(predicted: Tensor, labels: Tensor, epsilon: Tensor) -> Tensor:
    """The least epsilon of each ray at which the prediction is not the label; infinity if there is none.

    It is for your own searches; `apem` decides ray by ray.

    Args:
        predicted: (R, K) int64.
        labels: (R,) int64.
        epsilon: (K,) or (R, K), float32 or float64, in any order.

    Returns:
        (R,) of the dtype of `epsilon`, on the device of the inputs: nothing waits for the device.
    """
    return _ops.first_flip(predicted, labels, epsilon)


def relevance_map(
    attribution: Tensor,
    images: Tensor | None = None,
    percentile: float | None = PERCENTILE,
    channels: Literal["sum", "keep"] = "sum",
) -> Tensor:
    """Makes an attribution into a relevance map in [0, 1] (P1 section IV-A, P2 section 4.2).

    Takes the absolute values, clips them at a percentile of each image's own values, multiplies by the pixels, sums the
    channels, and rescales each map so that it reaches from 0 to 1.

    Args:
        attribution: (N, C, H, W), signed, any scale.
        images: pixels to multiply by, (N, C, H, W) or (N, 1, H, W), best in [0, 1]; None does not multiply.
        percentile: in [0, 100], over all values of an image, interpolated as by `numpy.percentile`; None for no
            clipping.
        channels: "sum" for (N, 1, H, W), "keep" for (N, C, H, W).

    Returns:
        The relevance, of the dtype of `attribution`. A constant map ranks no pixel above another: it becomes 0 if it
        was 0, and 0.5 otherwise. An image with a NaN gives a map of NaN. Not differentiable.
    """
    return _ops.relevance_map(attribution, images, percentile, channels)


def attack_penalty(perturbed: Tensor, original: Tensor, tv: float, zero: float, diff: float) -> tuple[Tensor, Tensor]:
    """The penalty of an attack (P3 eq. 25): tv * TVNorm(E) + zero * NonzeroCount(E) + diff * MSE(A', A), E = A' - A.

    TVNorm is equation 24 as written: the absolute differences to the neighbour below and to the neighbour on the right,
    summed over the pixels that have both, and over the channels. NonzeroCount counts pixels, not values: a pixel that
    changed in any channel counts once. MSE is the mean over all values of an image.

    Args:
        perturbed: A', (N, C, H, W).
        original: A, of the shape and dtype of `perturbed`.
        tv, zero, diff: TVForce, ZeroForce and DiffForce.

    Returns:
        penalty (N,) and the three terms before their forces (N, 3), both float64 whatever the inputs: a count of
        pixels does not fit in half precision. The penalty is differentiable in both images; the count is piecewise
        constant, so ZeroForce adds nothing to the derivative (`attack_step` descends it by its proximal operator).
        The derivative of an absolute difference of 0 is taken as 0.
    """
    return _ops.attack_penalty(perturbed, original, tv, zero, diff)


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
    """One step of an attack, A' - (step_size * gradient + damping * previous) (P3 equation 26, Algorithm 3 line 12).

    The texts add the step. Here it is subtracted, since the loss must decrease.

    Args:
        perturbed: A', (N, C, H, W).
        gradient: of the loss with respect to A', of the shape and dtype of `perturbed`.
        previous: the gradient of the previous step, or None in the first one, where the momentum is zero.
        region: bool, (N or 1, 1 or C, H, W); A' is not changed where it is False. None for everywhere.
        step_size: lambda, in units of A' per unit of gradient. As in the texts it does not multiply the momentum.
        damping: the factor of the previous gradient.
        lower, upper: optional bounds to which A' is clamped, within the region.
        original: A, required if `zero` is not 0.
        zero: ZeroForce. The step is followed by the proximal operator of step_size * zero * NonzeroCount(A' - A):
            a pixel whose squared perturbation, over its channels, is at most 2 * step_size * zero returns to A.

    Returns:
        The new A', of the dtype of `perturbed`. Not differentiable.
    """
    return _ops.attack_step(perturbed, gradient, previous, region, step_size, damping, lower, upper, original, zero)


def zero_levels(relevance: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """The filter's maps at many levels at once (P2 Algorithm 2): values of at most each threshold are set to 0.

    It is for your own filters; `filter_relevance` gives `perturb_probes` a level for each probe.

    Args:
        relevance: (N, C, H, W), any C.
        threshold: (L,), or (N, L) for different thresholds for each map; float32 or float64, rounded to the dtype in
            which `relevance` is computed. NaN sets nothing to 0.

    Returns:
        The zeroed maps, (N, L, C, H, W) of the dtype of `relevance`, and (N, L, 2) float64, the l1 norms of each and of
        1 minus it (before any broadcast to an image's channels), which are what `perturb_probes` divides by.
        Not differentiable.
    """
    return _ops.zero_levels(relevance, threshold)


def saliency_map(original: Tensor, perturbed: Tensor) -> Tensor:
    """How far each pixel changed, rescaled to [0, 1] (P3 equations 28 and 29; for perceptions, equation 31).

    Args:
        original: (N, C, H, W).
        perturbed: of the shape and dtype of `original`.

    Returns:
        (N, 1, H, W): the Euclidean distance between the colours of each pixel, minus the least of its image, divided by
        their range. A constant map ranks no pixel above another: it becomes 0 if nothing changed, and 0.5 otherwise. An
        image with a NaN gives a map of NaN. Not differentiable.
    """
    return _ops.saliency_map(original, perturbed)
