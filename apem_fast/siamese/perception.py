"""Perception visualizations: what a network sees, and the straight path between two of them (P3 4.2, 4.8.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apem_fast.ops import saliency_map
from apem_fast.results import Result
from apem_fast.siamese.networks import Ranker

__all__ = ["PerceptionChange", "interpolate_perceptions", "perceive", "perception_change"]


@torch.no_grad()
def perceive(ranker: Ranker, images: Tensor) -> Tensor:
    """The reconstruction of each image from its embedding: (N, C, H, W) -> (N, C, H, W)."""
    return ranker.reconstruct(ranker.embed(images))


@dataclass(frozen=True, eq=False, repr=False)
class PerceptionChange(Result):
    """Perceptions (N, C, H, W) before and after an attack, and the map of their difference (N, 1, H, W) (eq. 31)."""

    before: Tensor
    after: Tensor
    saliency: Tensor


def perception_change(ranker: Ranker, images: Tensor, perturbed: Tensor) -> PerceptionChange:
    """The explanation by perception (P3 sections 4.8.2 and 4.8.3) of an attack on `images`, both (N, C, H, W)."""
    before, after = perceive(ranker, images), perceive(ranker, perturbed)
    return PerceptionChange(before, after, saliency_map(before, after))


@torch.no_grad()
def interpolate_perceptions(ranker: Ranker, first: Tensor, second: Tensor, steps: int = 7) -> Tensor:
    """Reconstructions (N, steps, C, H, W) along the straight line between two embeddings (P3 Figure 35)."""
    if steps < 2:
        raise ValueError(f"interpolate_perceptions: steps must be at least 2 (got {steps})")
    start, end = ranker.embed(first), ranker.embed(second)
    parts = torch.linspace(0, 1, steps, dtype=torch.float32, device="cpu").tolist()
    return torch.stack([ranker.reconstruct(start + part * (end - start)) for part in parts], dim=1)
