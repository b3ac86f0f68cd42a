"""Finds where a ranking meets its target on a segment between two points; so mid-point attacks do not oscillate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from apem_fast.siamese.networks import Ranker

EVALUATIONS = 60  # the most; about five is usual


def meet_target(
    ranker: Ranker,
    embed: Callable[[Tensor], Tensor],
    points: tuple[Tensor, Tensor],
    scores: tuple[Tensor, Tensor],
    other: Tensor,
    target: Tensor,
    precision: float,
) -> tuple[Tensor, Tensor]:
    """Points on the segments between `points` where the score is within `precision` of the target, and their scores.

    The scores of the two ends lie on either side of the target. The method is regula falsi with the Illinois rule,
    which never leaves the bracket; each pair has its own fraction of its segment.
    """
    start, end = points
    shape = (-1,) + (1,) * (start.dim() - 1)
    left, right = torch.zeros_like(scores[0]), torch.ones_like(scores[0])
    gap_left, gap_right = scores[0] - target, scores[1] - target
    best, best_gap = right.clone(), gap_right.clone()
    side = torch.zeros_like(left)
    open_ = best_gap.abs() > precision
    for _ in range(EVALUATIONS):
        still = open_.nonzero()[:, 0]
        if not len(still):
            break
        guess = (left * gap_right - right * gap_left) / (gap_right - gap_left)
        guess = torch.where((guess > left) & (guess < right), guess, (left + right) / 2)
        here = start[still] + guess[still].view(shape) * (end[still] - start[still])
        gap = gap_right.clone()
        gap[still] = ranker.rank_embeddings(embed(here), other[still]) - target[still]
        best, best_gap = torch.where(open_, guess, best), torch.where(open_, gap, best_gap)
        on_right = gap * gap_right > 0
        # The value of an end that stays twice in a row is halved; otherwise the other end would hardly move.
        gap_left = torch.where(on_right, torch.where(side > 0, gap_left / 2, gap_left), gap)
        gap_right = torch.where(on_right, gap, torch.where(side < 0, gap_right / 2, gap_right))
        left, right = torch.where(on_right, left, guess), torch.where(on_right, guess, right)
        side = torch.where(on_right, 1.0, -1.0).to(side.dtype)
        open_ = open_ & (best_gap.abs() > precision)
    return start + best.view(shape) * (end - start), best_gap + target
