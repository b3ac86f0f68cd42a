"""Maps that do not depend on the model: baselines that an explanation method should beat.

For a sound metric, Random and Uniform score near 0. Edge and CenteredGaussian show what a method could score from the
picture alone, or from the fact that photographs have their subject in the centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from apem_fast.explain.explainer import Explainer
from apem_fast.extras import extra
from apem_fast.seeding import generator_for
from apem_fast.validation import make_numbers_plain


class Baseline(Explainer):
    """An explainer that ignores the model."""

    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Random(Baseline):
    """Values drawn uniformly from [0, 1), from a separate generator for each image.

    Args:
        seed: any integer; with the image's values it seeds that image's generator.
    """

    name: ClassVar[str] = "Random"
    seed: int = 0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        drawn = [
            torch.rand(image.shape, dtype=torch.float32, device="cpu", generator=generator_for(image, self.seed))
            for image in images
        ]
        return torch.stack(drawn).to(images)


@dataclass(frozen=True)
class Uniform(Baseline):
    """The same value everywhere. `relevance_map` makes it one half, so both rays are the same and the score is 0."""

    name: ClassVar[str] = "Uniform"

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return torch.ones_like(images)


@dataclass(frozen=True)
class Edge(Baseline):
    """The magnitude of each channel's Sobel gradient: where the picture has edges."""

    name: ClassVar[str] = "Edge"

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with extra("explain", "Edge"):
            from skimage.filters import sobel

        edges = [torch.from_numpy(sobel(channel)) for channel in images.flatten(0, 1).double().cpu().numpy()]
        return torch.stack(edges).view(images.shape).to(images)


@dataclass(frozen=True)
class CenteredGaussian(Baseline):
    """A Gaussian in the middle of the picture, exp(-r^2 / (2 s^2)), with r the distance from the centre.

    Args:
        width: s as a share of the picture's shorter side.
    """

    name: ClassVar[str] = "Centred Gaussian"
    width: float = 0.25

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        if not 0 < self.width < float("inf"):
            raise ValueError(f"{self.name}: width must be finite and greater than 0 (got {self.width})")

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        height, width = images.shape[2:]
        down = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
        across = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
        squared_radius = down[:, None] ** 2 + across[None, :] ** 2
        bell = torch.exp(-squared_radius / (2 * (self.width * min(height, width)) ** 2))
        return bell.to(images).expand(images.shape).clone()
