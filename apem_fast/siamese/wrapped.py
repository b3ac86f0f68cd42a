"""Other networks as rankers: regressors, verification networks, and networks that take both images at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apem_fast.siamese.networks import Ranker, SiameseRanker
from apem_fast.siamese.tails import CosineTail, DistanceTail, clipped

__all__ = ["FusionRanker", "ScoreRanker", "Swapped", "Verifier"]


class ScoreRanker(Ranker):
    """A network that predicts a number, as a ranker (P3 equations 15, 32 and 37).

    The number is the whole embedding, and a pair is ranked by (v_A - v_B) / (2 * (high - low)) + 1/2. So attacks also
    explain pretrained models that are not Siamese, which P3 section 6.4 lists as a limit of its method.

    If the regressor leaves [low, high], a ranking outside [0, 1] is clipped to the nearer end, but its derivative is
    passed on, so that an attack can return inside.

    Args:
        regressor: (N, C, H, W) -> (N,) or (N, 1).
        low, high: the least and the greatest number that it can predict, in its own units.
    """

    def __init__(self, regressor: nn.Module, low: float, high: float) -> None:
        if not low < high:
            raise ValueError(f"ScoreRanker: low must be less than high (got low={low}, high={high})")
        super().__init__()
        self.regressor, self.low, self.high = regressor, float(low), float(high)

    def embed(self, images: Tensor) -> Tensor:
        value = self.regressor(images)
        if value.numel() != images.shape[0]:
            raise ValueError(
                f"ScoreRanker: regressor must give one number for each image (got shape {tuple(value.shape)} "
                f"for {images.shape[0]} images)"
            )
        return value.reshape(-1, 1)

    def rank_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
        return clipped((first - second).squeeze(1) / (2 * (self.high - self.low)) + 0.5)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The regressor's numbers, in its own units: (N, C, H, W) -> (N,)."""
        return self.embed(images)[:, 0]

    def target_for(self, value: float | Tensor, other: Tensor) -> Tensor:
        """The ranking of an image with this value against images of values `other` (N,), in the regressor's units.

        Raises:
            ValueError: a value is outside [low, high], so that no ranking corresponds to it.
        """
        wanted = torch.as_tensor(value, dtype=other.dtype, device=other.device).expand_as(other)
        if not bool(((wanted >= self.low) & (wanted <= self.high)).all()):
            raise ValueError(
                f"target: value must lie in the regressor's range [{self.low:g}, {self.high:g}] (got {value})"
            )
        return ((wanted - other) / (2 * (self.high - self.low)) + 0.5).clamp(0, 1)

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


class Verifier(SiameseRanker):
    """A verification network as a ranker: 1 if two images show the same, and 1/2 at the network's threshold.

    Args:
        network: (N, C, H, W) -> (N, size), or (N, size, 1, 1): the embedding.
        distance: the Euclidean distance at which its decision changes (`DistanceTail`); or
        cosine: the cosine at which it does (`CosineTail`). Give exactly one of the two.
        decoder: (N, size) -> (N, C, H, W), or None.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        distance: float | None = None,
        cosine: float | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        if (distance is None) == (cosine is None):
            raise ValueError(f"Verifier: exactly one of distance and cosine must be given (got {distance}, {cosine})")
        tail = DistanceTail(distance) if distance is not None else CosineTail(cosine or 0.0)
        super().__init__(network, tail, decoder)


class FusionRanker(Ranker):
    """A network that takes both images at once, without an embedding of each ("early fusion"), as a ranker.

    `embed` returns the pixels themselves, so an attack "in embedding space" is one in input space.

    Args:
        network: (N, C, H, W), (N, C, H, W) -> (N,) or (N, 1); with `stacked`, (N, 2 * C, H, W) -> (N,) or (N, 1).
        shape: (C, H, W) of one image.
        stacked: the second image's channels follow the first's in one tensor.
        logit: whether the network returns a logit, whose sigmoid is the ranking; otherwise it must return a ranking in
            [0, 1].
    """

    def __init__(self, network: nn.Module, shape: Sequence[int], *, stacked: bool = False, logit: bool = False) -> None:
        super().__init__()
        self.network, self.shape, self.stacked, self.logit = network, tuple(shape), stacked, logit

    def embed(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            raise ValueError(f"FusionRanker: images must have shape (N, *{self.shape}) (got {tuple(images.shape)})")
        return images.flatten(1)

    def rank_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = first.unflatten(1, self.shape), second.unflatten(1, self.shape)
        score = self.network(torch.cat([a, b], dim=1)) if self.stacked else self.network(a, b)
        if score.numel() != len(first):
            raise ValueError(
                f"FusionRanker: network must give one number for each pair (got shape {tuple(score.shape)} "
                f"for {len(first)} pairs)"
            )
        return _sigmoid(score.reshape(-1)) if self.logit else score.reshape(-1)

    def extra_repr(self) -> str:
        return f"shape={self.shape}, stacked={self.stacked}, logit={self.logit}"


def _sigmoid(logit: Tensor) -> Tensor:
    """The sigmoid, with a derivative that does not become 0 when the value rounds to 1."""
    return torch.where(logit > 0, 1 - (-logit).sigmoid(), logit.sigmoid())


class Swapped(Ranker):
    """The same ranking of (second, first): an attack on it perturbs the second image of a pair."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def embed(self, images: Tensor) -> Tensor:
        return self.ranker.embed(images)

    def rank_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
        return self.ranker.rank_embeddings(second, first)

    @property
    def reconstructs(self) -> bool:
        return self.ranker.reconstructs

    def reconstruct(self, embedding: Tensor) -> Tensor:
        return self.ranker.reconstruct(embedding)
