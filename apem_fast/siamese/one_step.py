"""One-step attacks: the same procedure with a single step, so that all gradients are of the original (P3 4.5)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from apem_fast import ops
from apem_fast.running.undisturbed import no_autocast
from apem_fast.siamese.automatic import sizes
from apem_fast.siamese.bounds import Limit, check_bounds, within
from apem_fast.siamese.bracketing import meet_target
from apem_fast.siamese.checks import check_pairs, check_rankings, check_region, embed_images, require_gradient
from apem_fast.siamese.layout import in_batches
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.results import AttackOptions, AttackResult, Bounds, join_results

__all__ = ["one_step_attack"]

FIRST_SHARE, GROWTH = 1e-4, 1.5  # the first distance that is tried, in norms of the image, and the factor to the next


def one_step_attack(
    ranker: Ranker,
    first: Tensor,
    second: Tensor,
    target: float | Tensor,
    *,
    distance: float | Tensor | None = None,
    max_distance: float | None = None,
    region: Tensor | None = None,
    bounds: tuple[Limit, Limit] | None = None,
    precision: float = 1e-4,
    batch_size: int = 64,
    progress: bool = False,
) -> AttackResult:
    """One step against the gradient of (rank(A, B) - target)^2 at A, of a given length.

    Args:
        ranker, first, second, target, region, bounds, precision, batch_size, progress: as for `attack`.
        distance: the l2 length of the step in input space, one number or (N,). The `distance` of a many-step attack
            gives the comparison of P3 section 5.3.4. None searches for the length at which the target is met (the
            "correct step value" of section 4.5): lengths grow by half until the score crosses the target, then the
            crossing is bracketed.
        max_distance: the length at which that search stops; such a pair ends there and is not `reached`. None for the
            norm of each image.

    Bounds clamp the end of the step, which may make it shorter.

    Returns:
        AttackResult with one step. A pair without any gradient stays where it is, at distance 0.
    """
    goal = check_pairs("one_step_attack", ranker, first, second, target)
    region = check_region("one_step_attack", region, first)
    lengths = None if distance is None else torch.as_tensor(distance, dtype=first.dtype, device=first.device)
    limits = check_bounds("one_step_attack", bounds, first)
    if lengths is not None:
        if lengths.numel() not in (1, len(first)) or not bool((lengths >= 0).all() and lengths.isfinite().all()):
            raise ValueError(
                f"one_step_attack: distance must be one number or ({len(first)},), at least 0 (got {distance})"
            )
        lengths = lengths.reshape(-1).expand(len(first))

    def run(rows: slice) -> AttackResult:
        mask = region[rows] if region is not None and len(region) > 1 else region
        length = None if lengths is None else lengths[rows]
        with torch.inference_mode(False), torch.no_grad(), no_autocast():
            return _step(ranker, first[rows], second[rows], goal[rows], length, max_distance, mask, limits, precision)

    return join_results(in_batches(run, len(first), batch_size, "one-step attack" if progress else None))


def _step(
    ranker: Ranker,
    first: Tensor,
    second: Tensor,
    target: Tensor,
    length: Tensor | None,
    max_distance: float | None,
    region: Tensor | None,
    bounds: Bounds | None,
    precision: float,
) -> AttackResult:
    other = embed_images("one_step_attack", ranker, second)
    original = first.detach().clone()
    with torch.enable_grad():
        point = original.detach().requires_grad_()
        before = ranker.rank_embeddings(ranker.embed(point), other)
        require_gradient("one_step_attack", before)
        # The sign of (score - target) times the gradient of the score has the direction of the squared error's
        # gradient, but does not vanish near the target.
        (gradient,) = torch.autograd.grad(((before - target).detach().sign() * before).sum(), point)
    before = before.detach()
    check_rankings("one_step_attack", before, len(first))
    if region is not None:
        gradient = torch.where(region, gradient, 0)
    # In units of the greatest value first, since the squares of the smallest gradients underflow to 0.
    greatest = gradient.flatten(1).abs().amax(dim=1)
    gradient = gradient / torch.where(greatest > 0, greatest, 1)[:, None, None, None]
    norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    direction = gradient / torch.where(norm > 0, norm, 1)[:, None, None, None]
    limit = sizes(original) if max_distance is None else before.new_full((len(first),), max_distance)

    def go(length: Tensor) -> Tensor:
        step = direction * length[:, None, None, None]
        return within(bounds, ops.attack_step(original, step, None, region, 1.0, 0.0))

    def score_of(images: Tensor) -> Tensor:
        return ranker.rank_embeddings(ranker.embed(images), other)

    if length is None:
        perturbed, after = _search(ranker, go, score_of, before, other, target, sizes(original), limit, precision)
    else:
        perturbed = go(length)
        after = score_of(perturbed)
    travelled = torch.linalg.vector_norm((perturbed - original).flatten(1), dim=1)
    tv, changed, mean_squared = ops.attack_penalty(perturbed, original, 0.0, 0.0, 0.0)[1].unbind(1)
    return AttackResult(
        perturbed,
        torch.stack([before, after], dim=1),
        torch.stack([torch.zeros_like(before), travelled.to(before.dtype)], dim=1),
        target,
        (after - target).abs() <= precision,
        torch.ones(len(first), dtype=torch.int64, device=first.device),
        limit if length is None else torch.full_like(limit, math.inf),
        tv,
        changed,
        mean_squared,
        None,
        AttackOptions(steps=1, step_size="auto", bounds=bounds, precision=precision, max_distance=max_distance),
    )


def _search(
    ranker: Ranker,
    go: Callable[[Tensor], Tensor],
    score_of: Callable[[Tensor], Tensor],
    before: Tensor,
    other: Tensor,
    target: Tensor,
    size: Tensor,
    limit: Tensor,
    precision: float,
) -> tuple[Tensor, Tensor]:
    """The points where the straight line first meets the target, searched at lengths that grow by half."""
    near, near_score = torch.zeros_like(before), before
    done = (before - target).abs() <= precision
    length = torch.where(done, 0, torch.minimum(FIRST_SHARE * size, limit)).to(before.dtype)
    while True:
        score = score_of(go(length))
        crossed = (score - target) * (before - target) <= 0
        searching = ~done & ~crossed & (length < limit)
        if not bool(searching.any()):
            break
        near, near_score = torch.where(searching, length, near), torch.where(searching, score, near_score)
        length = torch.where(searching, torch.minimum(length * GROWTH, limit), length)
    met = crossed & ~done
    point, score = go(length), score.clone()
    if bool(met.any()):
        ends = (go(near)[met], point[met]), (near_score[met], score[met])
        point[met], score[met] = meet_target(ranker, ranker.embed, *ends, other[met], target[met], precision)
    return point, score
