"""Adversarial attacks on the first image of a pair, or on its embedding: P3's Algorithms 1, 2 and 3 on N pairs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from apem_fast.running.undisturbed import no_autocast
from apem_fast.siamese.attack_loop import attack_batch
from apem_fast.siamese.bounds import Limit, check_bounds
from apem_fast.siamese.checks import check_pairs, check_region
from apem_fast.siamese.layout import channels_last_on_cpu, in_batches, usual_batch
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.results import AttackOptions, AttackResult, join_results

__all__ = ["attack", "mid_point_attack"]


def attack(
    ranker: Ranker,
    first: Tensor,
    second: Tensor,
    target: float | Tensor,
    *,
    steps: int = 100,
    step_size: float | Literal["auto"] = "auto",
    damping: float = 0.0,
    momentum: Literal["gradient", "classical"] = "gradient",
    tv_force: float = 0.0,
    zero_force: float = 0.0,
    diff_force: float = 0.0,
    diff_reduction: Literal["mean", "sum"] = "mean",
    region: Tensor | None = None,
    space: Literal["input", "embedding"] = "input",
    bounds: tuple[Limit, Limit] | None = None,
    stop_when_reached: bool = False,
    max_distance: float | None = None,
    precision: float = 1e-4,
    perceptions_at: Sequence[int] = (),
    zero_surrogate: Literal["proximal", "none"] = "proximal",
    batch_size: int | None = None,
    progress: bool = False,
) -> AttackResult:
    """Perturbs each first image until the pair's ranking is `target`, and records the steps.

    This is Algorithm 2; with forces, a region or damping it is Algorithm 3, and with `space="embedding"` Algorithm 1.
    The texts write a plus sign before the gradient, although the loss must decrease, and MSE(A_m, target) where they
    mean the prediction. Here the loss is (rank(A', B) - target)^2 + the penalties of equation 25, and each step is
    A' - (step_size * gradient + damping * previous gradient) (equation 26).

    Args:
        ranker: in evaluation mode. Its parameters, their gradients, its mode and its hooks are left unchanged.
        first, second: the pairs, (N, C, H, W) each; they may have different sizes if the network accepts both. Only
            `first` is perturbed. To perturb the other, pass `wrapped.Swapped(ranker)` and exchange the images.
        target: in [0, 1]; one number or (N,).
        steps: the greatest number of steps.
        step_size: lambda, as in P3: units of the attacked space per unit of the loss's gradient. A number that suits
            one network does nothing on another. "auto" chooses the length of each step of each pair from the gradient
            (`automatic.py`), on any network, along the same gradients.
        damping: the factor of the previous gradient, or of the previous step.
        momentum: P3's formula and its text disagree. "gradient" is the formula, equation 26 and Algorithm 3: the
            previous gradient times `damping`, whatever the step size. "classical" is the text, "a fraction of the
            previous variation that was applied": the previous change of A' times `damping`, which accumulates over the
            steps and reaches farther. With "auto", a step along the gradient gets its length before this is added.
        tv_force, diff_force: the weights of the total variation and of the mean square of A' - A (equation 25).
        diff_reduction: "mean" is equation 25's word. "sum" takes the sum of squares over the image instead, C * H * W
            times as much, which is how P3 defines MSE for images in training (section 4.7).
        zero_force: the weight of each changed pixel. The count has no gradient, so in P3 this force has no effect
            (section 5.3.8). `zero_surrogate="proximal"` minimises it by its proximal operator: after each step, a pixel
            whose squared perturbation is at most 2 * step_size * zero_force returns exactly to the original. If no
            pixel's step is greater, the image does not change. `zero_surrogate="none"` is P3's behaviour.
        region: bool, (H, W), or (N or 1, C or 1, H, W): the pixels that may change. None for all.
        bounds: clamp A' to (lower, upper), each one number or one for each channel, in the space of `first`. For a
            network that takes normalised images, `bounds.normalised_bounds(mean, std)` are those of pixels in [0, 1].
            P3 does not clamp.
        stop_when_reached: whether a pair stops at the first step within `precision` of its target. A step that crosses
            the target is cut short where it meets it (by bracketing, so without oscillation); `reached` says whether
            the target was met.
        max_distance: a pair also stops at the first step that takes it at least so far from A, in the l2 norm: P3's
            criterion "based on how much the result deviates from the original" (section 5.3.3). None is no limit for a
            numeric step size; for "auto" it is the norm of A, as much change as there is image.
        precision: of the ranking, on [0, 1].
        perceptions_at: steps (0 for the original) whose perceptions are kept.
        batch_size: pairs that run together; it is halved, and the attack continues, if memory runs out. None chooses by
            the images' size.
        progress: whether to show a progress bar over the pairs.

    Returns:
        AttackResult, on the device of `first`. Its `outcome` says how each pair ended.

    Raises:
        ValueError, TypeError: one sentence naming the argument, what was expected and what came.

    Warns:
        UserWarning: a numeric step size overshoots, or hardly moves the ranking, on some of the pairs.
    """
    goal = check_pairs("attack", ranker, first, second, target)
    limits = check_bounds("attack", bounds, first if space == "input" else first.flatten(1))
    options = AttackOptions(
        steps=steps,
        step_size=step_size,
        damping=damping,
        momentum=momentum,
        tv_force=tv_force,
        zero_force=zero_force,
        diff_force=diff_force,
        diff_reduction=diff_reduction,
        space=space,
        bounds=limits,
        stop_when_reached=stop_when_reached,
        max_distance=max_distance,
        precision=precision,
        perceptions_at=tuple(perceptions_at),
        zero_surrogate=zero_surrogate,
    )
    mask = check_region("attack", region, first)
    if options.perceptions_at and not ranker.reconstructs:
        raise ValueError(f"attack: perceptions_at must be empty for a ranker without a decoder (got {perceptions_at})")
    if space == "embedding" and mask is not None:
        raise ValueError("attack: region must be None in embedding space, which has no pixels (got a mask)")

    with torch.inference_mode(False), no_autocast(), channels_last_on_cpu(ranker, first, second) as memory_format:

        def run(rows: slice) -> AttackResult:
            part = mask[rows] if mask is not None and len(mask) > 1 else mask
            a, b = (each[rows].detach().contiguous(memory_format=memory_format) for each in (first, second))
            return attack_batch(ranker, a, b, goal[rows], part, options)

        size = usual_batch(first) if batch_size is None else batch_size
        result = join_results(in_batches(run, len(first), size, "attack" if progress else None))
    _warn_of_step_size(result)
    return result


def mid_point_attack(ranker: Ranker, first: Tensor, second: Tensor, **options: Any) -> AttackResult:
    """`attack` to 0.5, "on the boundary of the two classes" (P3 section 4.4), where it stops.

    The arguments are those of `attack`.
    """
    return attack(ranker, first, second, 0.5, **({"stop_when_reached": True} | options))


def _warn_of_step_size(result: AttackResult) -> None:
    options = result.options
    if options.automatic or options.steps < 2:
        return
    outcome = result.outcome
    for word, why in (("overshoots", "is too long for"), ("hardly moves", "is too short for")):
        if word in outcome:
            warnings.warn(
                f"attack: step_size={options.step_size:g} {why} {outcome.count(word)} of {len(outcome)} pairs: the "
                f'ranking {"swings around the target" if word == "overshoots" else "hardly moves"}; step_size="auto" '
                f"finds one for each",
                stacklevel=3,
            )
