"""How good a ranker is on images that it was not trained on: P3's criteria for a model (section 5.3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.pairs import RankedImages

__all__ = ["RankerQuality", "measure_quality"]


@dataclass(frozen=True)
class RankerQuality:
    """Attributes:
    mean_deviation: mean of |ranking - target|, on [0, 1]; P3 requires at most 0.05.
    baseline: the mean deviation of a constant ranking of 0.5, which is the mean of the targets.
    order_accuracy: share of the pairs without a tie that are ranked on the right side of 1/2.
    reconstruction_error: root mean square error of the reconstructions, in pixel values; None without a decoder.
    pairs: how many pairs were ranked.
    """

    mean_deviation: float
    baseline: float
    order_accuracy: float
    reconstruction_error: float | None
    pairs: int

    @property
    def learnt(self) -> bool:
        """Whether the network ranks better than a constant; otherwise there is nothing to explain.

        Its deviation must be at least a fifth below the constant's, and three pairs in five must be in the right order.
        """
        return self.mean_deviation <= 0.8 * self.baseline and self.order_accuracy >= 0.6

    @property
    def warning(self) -> str:
        """The warning above every figure of a network that learnt nothing; empty for any other."""
        if self.learnt:
            return ""
        return (
            f"This network has learnt next to nothing: it misses the targets by {self.mean_deviation:.3f} on average "
            f"where "
            f"a constant 0.5 misses them by {self.baseline:.3f}, and orders {self.order_accuracy:.0%} of the pairs "
            f"rightly. "
            f"What is drawn here explains a network that cannot rank; train it longer before believing any of it."
        )


@torch.no_grad()
def measure_quality(ranker: Ranker, data: RankedImages, *, pairs: int = 50_000, seed: int = 0) -> RankerQuality:
    """Ranks random pairs of two different images of `data`, or every ordered pair if there are at most `pairs`.

    Pairs of an image with itself are left out, since many rankers give them their target, 0.5, by construction.
    """
    n = len(data)
    if n * (n - 1) <= pairs:
        every = torch.arange(n, device="cpu")
        first, second = every.repeat_interleave(n), every.repeat(n)
        first, second = first[first != second], second[first != second]
    else:
        first, second = data.draw_pairs(pairs, torch.Generator().manual_seed(seed))
    device = ranker.device
    embedding, squared = [], torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, n, 256):
        images = data.batch(slice(start, start + 256)).to(device)
        embedding.append(ranker.embed(images))
        if ranker.reconstructs:
            squared += (ranker.reconstruct(embedding[-1]) - images).double().square().sum()
    embedded = torch.cat(embedding)
    score = torch.cat(
        [
            ranker.rank_embeddings(embedded[i], embedded[j])
            for i, j in zip(first.to(device).split(4096), second.to(device).split(4096))
        ]
    ).to(data.values.device)
    target = data.target(first, second)
    apart = data.values[first] != data.values[second]
    right = (score[apart] > 0.5) == (target[apart] > 0.5)
    return RankerQuality(
        mean_deviation=float((score - target).abs().double().mean()),
        baseline=float((target - 0.5).abs().double().mean()),
        order_accuracy=float(right.double().mean()),
        reconstruction_error=(float(squared) / data.images.numel()) ** 0.5 if ranker.reconstructs else None,
        pairs=len(first),
    )
