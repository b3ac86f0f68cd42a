"""Methods that hide parts of the image and watch the class's score: Occlusion and RISE. They need no gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apem_fast.explain.explainer import (
    Explainer,
    checked_logits,
    require_at_least_one,
    require_batch_size,
    require_known_labels,
)
from apem_fast.seeding import generator_for
from apem_fast.validation import make_numbers_plain


@dataclass(frozen=True)
class Occlusion(Explainer):
    """Occlusion (Zeiler and Fergus 2014): how far the label's logit falls if a square of the image is covered.

    Each pixel gets the mean over all squares that cover it; signed, and the same in every channel.

    Args:
        window: side of the square, in pixels; at most the image's.
        stride: pixels from one square to the next, at most `window`.
        value: the value of covered pixels, in the space of the tensor that the model receives (if images are
            normalised, 0 is the mean).
        batch_size: the most covered images in one batch; None for the usual number on that device.
    """

    name: ClassVar[str] = "Occlusion"
    window: int = 16
    stride: int = 8
    value: float = 0.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)
        for option in ("window", "stride"):
            require_at_least_one(self.name, option, getattr(self, option))
        if self.stride > self.window:
            raise ValueError(
                f"{self.name}: stride must be at most window={self.window}, or pixels stay uncovered "
                f"(got {self.stride})"
            )
        if not math.isfinite(self.value):
            raise ValueError(f"{self.name}: value must be finite (got {self.value})")

    def images_at_once(self, device: torch.device) -> int:
        return 1

    @property
    def cost_per_image(self) -> float:
        return (224 / self.stride) ** 2

    @torch.no_grad()
    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        height, width = images.shape[2:]
        logits = checked_logits(model, images, self.name)
        require_known_labels(logits, labels, self.name)
        fallen = torch.zeros(height, width, dtype=torch.float64, device=images.device)
        covers = torch.zeros_like(fallen)
        places = [(y, x) for y in self._starts(height) for x in self._starts(width)]
        at_once = self.batch_on(images.device)
        for begin in range(0, len(places), at_once):
            some = places[begin : begin + at_once]
            covered = images.repeat(len(some), 1, 1, 1)
            for one, (y, x) in zip(covered, some):
                one[:, y : y + self.window, x : x + self.window] = self.value
            differences = (logits[0, labels[0]] - checked_logits(model, covered, self.name)[:, labels[0]]).double()
            for difference, (y, x) in zip(differences, some):
                fallen[y : y + self.window, x : x + self.window] += difference
                covers[y : y + self.window, x : x + self.window] += 1
        return (fallen / covers).to(images.dtype).expand(images.shape).clone()

    def _starts(self, side: int) -> list[int]:
        """Where squares begin: every `stride` pixels, and one at the far edge."""
        last = max(side - self.window, 0)
        return [*range(0, last, self.stride), last]


@dataclass(frozen=True)
class RISE(Explainer):
    """RISE, randomised input sampling (Petsiuk et al. 2018): the weighted mean of random soft masks.

    A mask's weight is the label's probability for the image under that mask; the mean is divided by the share of the
    image that a mask shows. The map is the same in every channel. Each image's masks are drawn from a generator of its
    own, seeded with the image's values and `seed`.

    Args:
        samples: how many masks.
        cells: of the coarse grid of a mask, on each side.
        shown: the probability that a cell is shown.
        seed: any integer; another seed draws other masks.
        batch_size: the most masked images in one batch; None for the usual number on that device.
    """

    name: ClassVar[str] = "RISE"
    samples: int = 1000
    cells: int = 7
    shown: float = 0.5
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)
        for option in ("samples", "cells"):
            require_at_least_one(self.name, option, getattr(self, option))
        if not 0 < self.shown < 1:
            raise ValueError(f"{self.name}: shown must lie between 0 and 1 (got {self.shown})")

    def images_at_once(self, device: torch.device) -> int:
        return 1

    @property
    def cost_per_image(self) -> float:
        return float(self.samples)

    @torch.no_grad()
    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        require_known_labels(checked_logits(model, images, self.name), labels, self.name)
        generator = generator_for(images[0], self.seed)
        total = torch.zeros(images.shape[2:], dtype=torch.float64, device=images.device)
        at_once = self.batch_on(images.device)
        for begin in range(0, self.samples, at_once):
            count = min(at_once, self.samples - begin)
            masks = [self.mask(images.shape[2], images.shape[3], generator) for _ in range(count)]
            mask = torch.stack(masks).to(images)
            probability = checked_logits(model, images * mask, self.name).double().softmax(dim=1)[:, labels[0]]
            total += (probability[:, None, None] * mask[:, 0].double()).sum(dim=0)
        return (total / (self.samples * self.shown)).to(images.dtype).expand(images.shape).clone()

    def mask(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        """One mask (1, height, width) in [0, 1].

        A coarse grid of zeros and ones is enlarged bilinearly to one cell more than the image, and cut at a random
        position.
        """
        cell_height, cell_width = -(-height // self.cells), -(-width // self.cells)
        grid = (
            torch.rand(1, 1, self.cells, self.cells, dtype=torch.float32, device="cpu", generator=generator)
            < self.shown
        ).float()
        size = ((self.cells + 1) * cell_height, (self.cells + 1) * cell_width)
        large = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)[0]
        top = int(torch.randint(cell_height, (1,), generator=generator, device="cpu"))
        left = int(torch.randint(cell_width, (1,), generator=generator, device="cpu"))
        return large[:, top : top + height, left : left + width]
