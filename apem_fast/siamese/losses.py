"""The losses of the training regimes: errors of rankings and images, and similarity losses (P3 section 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from apem_fast.siamese.networks import SiameseRanker
from apem_fast.siamese.training import Batch

__all__ = ["contrastive_loss", "image_loss", "ranking_loss", "triplet_loss"]


def ranking_loss(ranker: SiameseRanker, embedding: Tensor, batch: Batch) -> Tensor:
    """The mean squared error of the rankings of a batch's pairs; `embedding` is that of its images."""
    score = ranker.rank_embeddings(embedding[batch.first], embedding[batch.second])
    return (score - batch.target).square().mean()


def image_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    """The sum of squares over an image, as P3 section 4.7 defines it, averaged over the images."""
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"reconstruct: decoder must give images of shape {tuple(images.shape)} (got {tuple(reconstruction.shape)})"
        )
    return (images - reconstruction).square().flatten(1).sum(dim=1).mean()


def contrastive_loss(distance: Tensor, similar: Tensor, margin: float = 1.0) -> Tensor:
    """The mean of 1/2 D^2 over similar pairs and 1/2 max(0, margin - D)^2 over the others (P3 equations 7-9).

    Equation 8 gives the first term to pairs labelled 0, while the text labels similar pairs 1. This follows the purpose
    that the text states: "low values of D for similar pairs".

    Args:
        distance: (P,) Euclidean distances of embeddings.
        similar: (P,) bool.
    """
    return torch.where(similar, distance.square(), (margin - distance).clamp(min=0).square()).mean() / 2


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0) -> Tensor:
    """The mean of max(|f(A) - f(P)| - |f(A) - f(N)| + margin, 0) (P3 equation 10, which leaves out the "max").

    Args:
        anchor, positive, negative: embeddings (T, size).
    """
    gap = torch.linalg.vector_norm(anchor - positive, dim=1) - torch.linalg.vector_norm(anchor - negative, dim=1)
    return (gap + margin).clamp(min=0).mean()
