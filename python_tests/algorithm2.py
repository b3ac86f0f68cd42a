"""P2 Algorithm 2 as its reader would write it: one level, one ray, one epsilon at a time."""

from __future__ import annotations

import torch
from networks import literal_epsilons
from torch import Tensor, nn


def literal_filter(
    model: nn.Module, image: Tensor, relevance: Tensor, step: float, max_epsilon: float, min_drop: float = 0.0
) -> tuple[Tensor, list[int | None], str]:
    """The filtered map (1 or C, H, W), the score at every level that was seen, in grid steps, and why it ended.

    A score is None where either ray is censored differently from the level before: there the filter stops.
    """

    def score(values: Tensor) -> tuple[int, tuple[bool, bool]]:
        (minus, flipped_minus), (plus, flipped_plus) = literal_epsilons(model, image, values, step, max_epsilon)
        return round(plus / step) - round(minus / step), (flipped_minus, flipped_plus)

    best, (best_score, best_flipped) = relevance, score(relevance)
    scores: list[int | None] = [best_score]
    while True:
        least = best[best > 0].min()
        zeroed = torch.where(best == least, 0, best)
        if not bool((zeroed > 0).any()):
            return best, scores, "empty"
        new_score, flipped = score(zeroed)
        if flipped != best_flipped:
            return best, [*scores, None], "censored"
        scores.append(new_score)
        if (best_score - new_score) * step > min_drop:
            return best, scores, "dropped"
        best, best_score = zeroed, new_score
