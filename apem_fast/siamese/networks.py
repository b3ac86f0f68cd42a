"""Networks that rank pairs of images: the base class, and the Siamese networks of P3.

A ranker embeds each image separately and ranks the two embeddings (P3 equations 18-21), so an attack on one image of a
pair embeds the other only once.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from apem_fast.siamese.tails import JointTail

__all__ = ["Ranker", "SiameseRanker"]


class Ranker(nn.Module, ABC):
    """Ranks pairs: 1 if the first image is the greatest possible and the second the least, 0.5 if they are equal."""

    @property
    def device(self) -> torch.device:
        """The device of its parameters; the CPU if it has none."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """The embedding of each image (w^e of P3 equation 20): (N, C, H, W) -> (N, size)."""

    @abstractmethod
    def rank_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
        """The ranking of each pair of embeddings (w^r of P3 equation 20): (N, size), (N, size) -> (N,) in [0, 1]."""

    def rank(self, first: Tensor, second: Tensor) -> Tensor:
        """The ranking of each pair of images (P3 equation 18): (N, C, H, W), (N, C, H, W) -> (N,) in [0, 1]."""
        return self.rank_embeddings(self.embed(first), self.embed(second))

    @property
    def reconstructs(self) -> bool:
        """Whether it has a decoder, so that perceptions can be drawn."""
        return False

    def reconstruct(self, embedding: Tensor) -> Tensor:
        """The perception visualization of each embedding (p of P3 equation 22): (N, size) -> (N, C, H, W)."""
        raise ValueError(f"reconstruct: ranker must have a decoder (got {type(self).__name__} without one)")

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.rank(first, second)


class SiameseRanker(Ranker):
    """A Siamese ranking network with a decoder in addition to its tail (P3 section 4.7, Figure 19).

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
        cls,
        branch: nn.Module,
        size: int,
        decoder: nn.Module | None = None,
        hidden: int | None = None,
        images: Tensor | None = None,
    ) -> SiameseRanker:
        """A ranker with any embedding network of `size` values as its branch, and P3's tail (`hidden`: 2 * size).

        The tail's first weights are scaled by the embeddings of `images` (N, C, H, W), some of the training images.
        """
        ranker = cls(branch, JointTail(size, hidden or 2 * size), decoder)
        return ranker if images is None else _scaled(ranker, images)

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
        return _scaled(cls(branch, JointTail(size, 4096), _mnist_decoder(size)), _blots(1, 28))

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
        return _scaled(cls(branch, JointTail(size, hidden), _mnist_decoder(size)), _blots(1, 28))

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
        ranker = cls(nn.Sequential(*branch), JointTail(size, 2 * size), nn.Sequential(*decoder))
        return _scaled(ranker, _blots(3, 112))


class AsPixel(nn.Module):
    """The input of a decoder's first transposed convolution: (N, size) -> (N, size, 1, 1)."""

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding[:, :, None, None]


class ClippedReLU(nn.Module):
    """Clips to [0, 1], but passes the derivative on as if it did not.

    Otherwise a pixel that is wrongly clipped would never learn, since its derivative would be 0. A pixel that is
    rightly black or white has no error.
    """

    def forward(self, images: Tensor) -> Tensor:
        return images + (images.clamp(0, 1) - images).detach()


def _blots(channels: int, pixels: int) -> Tensor:
    """Smooth random images, always the same ones. Untrained branches spread them about as widely as digits."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((32, channels, 4, 4), generator=generator, dtype=torch.float32, device="cpu")
    return nn.functional.interpolate(coarse, size=(pixels, pixels), mode="bilinear", align_corners=False)


def _scaled(ranker: SiameseRanker, images: Tensor) -> SiameseRanker:
    """The ranker, with its tail scaled to the embeddings of these images in training mode."""
    branch = copy.deepcopy(ranker.branch).train()  # a copy, so that running statistics do not change
    with torch.no_grad():
        parameter = next(branch.parameters(), images)
        tail: Any = ranker.tail  # a JointTail
        tail.scale_to(branch(images.to(parameter)).flatten(1))
    return ranker


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
