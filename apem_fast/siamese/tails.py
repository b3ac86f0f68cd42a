"""The tails that rank two embeddings: P3's joint section, and the similarities that verification networks use."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["CosineTail", "DistanceTail", "JointTail"]

SPREAD = 0.14  # standard deviation, over images, of the inputs of a new tail's hidden neurons; found good on digits


class JointTail(nn.Module):
    """The ranking of two embeddings with one hidden layer; both layers end in a sigmoid (P3 Tables 3 and 6).

    In the tables the hidden layer has size_e inputs, but the texts concatenate the two embeddings (section 4.7).
    "concatenate" follows the texts, with 2 * size_e inputs; "difference" has size_e inputs, as in the tables.
    """

    def __init__(self, size: int, hidden: int, connector: Literal["concatenate", "difference"] = "concatenate") -> None:
        super().__init__()
        self.connector = connector
        inputs = 2 * size if connector == "concatenate" else size
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.Sigmoid(), nn.Linear(hidden, 1), nn.Sigmoid())

    @torch.no_grad()
    def scale_to(self, embedding: Tensor) -> JointTail:
        """Scales the first weights so that images spread over the sigmoids' slope; P3 does not give initial weights.

        If the embeddings of an untrained branch are small, sigmoids are linear there: thousands of hidden neurons act
        as one, and learning takes several times as long. If they are large, neurons are saturated and hardly learn.

        Args:
            embedding: (N, size) of N images, at least two of them different; equal ones leave the weights alone.
        """
        hidden: Any = self.layers[0]
        spread = hidden(self._joined(embedding, embedding.roll(1, 0))).std(dim=0).mean()
        if spread > 0:
            hidden.weight.mul_(SPREAD / spread)
        return self

    def _joined(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second], dim=1) if self.connector == "concatenate" else first - second

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.layers(self._joined(first, second)).squeeze(1)


class DistanceTail(nn.Module):
    """The similarity of two embeddings by their Euclidean distance D: 1 - D / (2 * threshold), in [0, 1].

    It is 1 for equal embeddings, 1/2 at the threshold, and 0 from twice the threshold on. The slope is the same
    everywhere and is passed on even if the similarity is clipped, so that an attack can start from any distance. Only
    exactly equal embeddings have no steepest direction: their gradient is 0.

    Args:
        threshold: the distance at which the network's decision changes between "the same" and "different". For a
            network trained with the contrastive loss (P3 equations 7-9) it is half the margin, half-way between similar
            and different pairs.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0 < threshold < math.inf:
            raise ValueError(f"DistanceTail: threshold must be greater than 0 (got {threshold})")
        self.threshold = threshold

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return clipped(1 - torch.linalg.vector_norm(first - second, dim=1) / (2 * self.threshold))

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}"


class CosineTail(nn.Module):
    """The similarity of two embeddings by the angle between them: 1 - angle / (2 * the threshold's angle), in [0, 1].

    It is 1 for the same direction, and 1/2 if their cosine is the threshold. The order of pairs is that of their
    cosines. The angle is used because the slope of a cosine vanishes near 1 and -1, where the pairs are that a network
    is sure of. Clipped values pass the slope on, as in `DistanceTail`.

    Args:
        threshold: the cosine, between -1 and 1, from which on the network says "the same".
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        if not -1 < threshold < 1:
            raise ValueError(f"CosineTail: threshold must lie between -1 and 1 (got {threshold})")
        self.threshold = threshold

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        u, v = nn.functional.normalize(first, dim=1), nn.functional.normalize(second, dim=1)
        # Not the arc cosine of the product: its slope is infinite at 1, and half of the digits are lost near it.
        apart, along = (torch.linalg.vector_norm(w, dim=1) for w in (u - v, u + v))
        return clipped(1 - torch.atan2(apart, along) / math.acos(self.threshold))

    def extra_repr(self) -> str:
        return f"threshold={self.threshold:g}"


def clipped(score: Tensor) -> Tensor:
    """The score clipped to [0, 1], with the derivative of the unclipped score, so that an attack can return inside."""
    return score + (score.clamp(0, 1) - score).detach()
