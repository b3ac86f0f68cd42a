"""Networks that rank pairs of images: what a ranker is, Siamese networks, and scores of single images as rankers.

A ranker embeds each image on its own and ranks the two embeddings (P3 equations 18-21), so an attack on one image of
a pair never has to run the other again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["DistanceTail", "JointTail", "Ranker", "ScoreRanker", "SiameseRanker"]

FIRST_WEIGHTS = 16.0  # how much wider than torch's the first weights of a tail's hidden layer are


class Ranker(nn.Module, ABC):
    """Ranks pairs: 1 where the first image is the greatest possible and the second the least, 0.5 between equals."""

    @property
    def device(self) -> torch.device:
        """Where its parameters are; the CPU, if it has none."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, size): the embedding of each image (w^e of P3 equation 20)."""

    @abstractmethod
    def rank_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
        """(N, size), (N, size) -> (N,) in [0, 1]: the ranking of each pair (w^r of P3 equation 20)."""

    def rank(self, first: Tensor, second: Tensor) -> Tensor:
        """(N, C, H, W), (N, C, H, W) -> (N,) in [0, 1] (P3 equation 18)."""
        return self.rank_embeddings(self.embed(first), self.embed(second))

    @property
    def reconstructs(self) -> bool:
        """Whether perceptions can be drawn."""
        return False

    def reconstruct(self, embedding: Tensor) -> Tensor:
        """(N, size) -> (N, C, H, W): the perception visualization of each embedding (p of P3 equation 22)."""
        raise ValueError(f"reconstruct: ranker must have a decoder (got {type(self).__name__} without one)")

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.rank(first, second)


class SiameseRanker(Ranker):
    """A Siamese ranking network with a decoder beside its tail (P3 section 4.7, Figure 19).

    Args:
        branch: (N, C, H, W) -> (N, size), or (N, size, 1, 1); shared by both images.
        tail: (N, size), (N, size) -> (N,) or (N, 1), in [0, 1].
        decoder: (N, size) -> (N, C, H, W), or None: then there are no perceptions to draw.
    """

    def __init__(self, branch: nn.Module, tail: nn.Module, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.branch, self.tail, self.decoder = branch, tail, decoder

    def embed(self, images: Tensor) -> Tensor:
        return self.branch(images).flatten(1)

    def rank_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
        score = self.tail(first, second)
        return score.squeeze(1) if score.dim() == 2 else score

    @property
    def reconstructs(self) -> bool:
        return self.decoder is not None

    def reconstruct(self, embedding: Tensor) -> Tensor:
        return super().reconstruct(embedding) if self.decoder is None else self.decoder(embedding)

    @classmethod
    def for_branch(
        cls, branch: nn.Module, size: int, decoder: nn.Module | None = None, hidden: int | None = None
    ) -> SiameseRanker:
        """Any embedding network of `size` values as the branch, with a tail of P3's kind (`hidden`: 2 * size)."""
        return cls(branch, JointTail(size, hidden or 2 * size), decoder)

    @classmethod
    def for_mnist(cls, size: int = 10) -> SiameseRanker:
        """P3 Tables 2-4: 28-pixel digits, (N, 1, 28, 28) in [0, 1], with `size` values in an embedding."""
        branch = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, size, 7),
        )
        return cls(branch, JointTail(size, 4096), _mnist_decoder(size))

    @classmethod
    def for_mnist_mirroring(cls, size: int = 10, hidden: int = 4096) -> SiameseRanker:
        """P3 Table 1, the autoencoder of the mirroring experiment, as branch and decoder; one hidden layer as tail."""
        branch = nn.Sequential(
            nn.Conv2d(1, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, size, 7),
        )
        return cls(branch, JointTail(size, hidden), _mnist_decoder(size))

    @classmethod
    def for_utkface(cls, size: int = 256) -> SiameseRanker:
        """P3 Tables 5-7: 112-pixel faces, (N, 3, 112, 112) in [0, 1], with `size` values in an embedding."""
        branch: list[nn.Module] = []
        for before, after in ((3, 32), (32, 64), (64, 128), (128, 256)):
            branch += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU(), nn.BatchNorm2d(after)]
        branch.append(nn.Conv2d(256, size, 7))
        decoder: list[nn.Module] = [AsPixel(), nn.ConvTranspose2d(size, 256, 7), nn.ReLU(), nn.BatchNorm2d(256)]
        for before, after in ((256, 128), (128, 64), (64, 32)):
            up = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            decoder += [up, nn.ReLU(), nn.BatchNorm2d(after)]
        decoder += [nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1), ClippedReLU()]
        return cls(nn.Sequential(*branch), JointTail(size, 2 * size), nn.Sequential(*decoder))


class ScoreRanker(Ranker):
    """Any network that predicts a number, as a ranker (P3 equations 15, 32 and 37).

    The number is the whole embedding, and a pair is ranked by (v_A - v_B) / (2 * (high - low)) + 1/2. So attacks
    explain pretrained models that never were Siamese: what P3 section 6.4 lists as a limit of its method.

    Where the regressor leaves [low, high], a ranking beyond [0, 1] is reported as the nearer end, but its derivative
    is passed through, so that an attack can come back from there.

    Args:
        regressor: (N, C, H, W) -> (N,) or (N, 1).
        low, high: the least and the greatest number it can predict, in its own units.
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
        score = (first - second).squeeze(1) / (2 * (self.high - self.low)) + 0.5
        return score + (score.clamp(0, 1) - score).detach()

    def extra_repr(self) -> str:
        return f"low={self.low:g}, high={self.high:g}"


class JointTail(nn.Module):
    """The ranking of two embeddings by one hidden layer, both of whose layers end in a sigmoid (P3 Tables 3 and 6).

    The tables write size_e as the input of the hidden layer, the texts concatenate the two embeddings (section 4.7):
    "concatenate" is the texts', with 2 * size_e inputs; "difference" gives the tables' size_e.
    """

    def __init__(self, size: int, hidden: int, connector: Literal["concatenate", "difference"] = "concatenate") -> None:
        super().__init__()
        self.connector = connector
        inputs = 2 * size if connector == "concatenate" else size
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.Sigmoid(), nn.Linear(hidden, 1), nn.Sigmoid())
        # Fresh embeddings are small, and there a sigmoid is straight: with torch's usual weights thousands of hidden
        # neurons start as one, and learning takes several times as long.
        with torch.no_grad():
            self.layers[0].weight.mul_(FIRST_WEIGHTS)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        joined = torch.cat([first, second], dim=1) if self.connector == "concatenate" else first - second
        return self.layers(joined).squeeze(1)


class DistanceTail(nn.Module):
    """The similarity of two embeddings, for networks trained by a contrastive or triplet loss (P3 section 2.4).

    1 for equal embeddings, 1/2 where their Euclidean distance is half the margin of the loss, towards 0 far apart.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.exp2(-4 * (first - second).square().sum(dim=1) / self.margin**2)

    def extra_repr(self) -> str:
        return f"margin={self.margin:g}"


class AsPixel(nn.Module):
    """(N, size) -> (N, size, 1, 1), which is what a decoder's first transposed convolution takes."""

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding[:, :, None, None]


class ClippedReLU(nn.Module):
    """Clips to [0, 1] and passes the derivative as if it did not.

    A pixel that is clipped, wrongly, would otherwise never learn: its derivative is 0. One that is rightly black or
    white has no error to pass.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images + (images.clamp(0, 1) - images).detach()


def _mnist_decoder(size: int) -> nn.Sequential:
    """P3 Table 4, which is also the decoder of Table 1."""
    return nn.Sequential(
        AsPixel(),
        nn.ConvTranspose2d(size, 128, 7),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 128, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 1, 2, stride=2),
        ClippedReLU(),
    )


RANKERS: dict[str, Callable[[int], SiameseRanker]] = {
    "mnist": SiameseRanker.for_mnist,
    "mnist-mirroring": SiameseRanker.for_mnist_mirroring,
    "utkface": SiameseRanker.for_utkface,
}
"""P3's architectures by name, each a function of the embedding size."""
