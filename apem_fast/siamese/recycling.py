"""Perturbation recycling: the change of the perception in an attack, added to the input (P3 Algorithm 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apem_fast.siamese.checks import check_pairs, embed_images
from apem_fast.siamese.networks import Ranker

__all__ = ["Recycling", "recycle"]


@dataclass(frozen=True)
class Recycling:
    """Algorithm 4 on N pairs; the names of its variables in brackets.

    Attributes:
        difference: (N, C, H, W), perception after minus perception before the attack [d].
        recycled: (N, C, H, W), the first images plus that difference [A + d].
        score_before, score_attacked, score_recycled: (N,) [c, c', c''].
        perception_before, perception_attacked, perception_recycled: (N, C, H, W) [h_1, h_1', h_1''].
    """

    difference: Tensor
    recycled: Tensor
    score_before: Tensor
    score_attacked: Tensor
    score_recycled: Tensor
    perception_before: Tensor
    perception_attacked: Tensor
    perception_recycled: Tensor


@torch.no_grad()
def recycle(ranker: Ranker, first: Tensor, second: Tensor, perturbed: Tensor) -> Recycling:
    """Algorithm 4.

    Args:
        ranker: with a decoder, in evaluation mode.
        first, second: the pairs, (N, C, H, W) each.
        perturbed: A + epsilon, the images of any attack on `first`.
    """
    check_pairs("recycle", ranker, first, second, 0.5)
    if perturbed.shape != first.shape:
        raise ValueError(f"recycle: perturbed must have shape {tuple(first.shape)} (got {tuple(perturbed.shape)})")
    other = embed_images("recycle", ranker, second)

    def see(images: Tensor) -> tuple[Tensor, Tensor]:
        embedding = ranker.embed(images)
        return ranker.rank_embeddings(embedding, other), ranker.reconstruct(embedding)

    before, perception_before = see(first)
    attacked, perception_attacked = see(perturbed)
    difference = perception_attacked - perception_before
    recycled, perception_recycled = see(first + difference)
    return Recycling(
        difference,
        first + difference,
        before,
        attacked,
        recycled,
        perception_before,
        perception_attacked,
        perception_recycled,
    )
