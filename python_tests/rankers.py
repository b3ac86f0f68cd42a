"""Small rankers and pairs for the tests of siamese/: smooth, deterministic, and quick to attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apem_fast.siamese.networks import AsPixel, SiameseRanker
from apem_fast.siamese.pairs import RankedImages
from apem_fast.siamese.tails import JointTail

PIXELS = 12


def small_ranker(seed: int = 0, channels: int = 1, dtype: torch.dtype = torch.float64) -> SiameseRanker:
    """12-pixel images, 4 values in an embedding; a batch-normalisation layer, whose mode must not matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branch = nn.Sequential(
            nn.Conv2d(channels, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 4, 6)
        )
        decoder = nn.Sequential(AsPixel(), nn.ConvTranspose2d(4, channels, PIXELS), nn.Sigmoid())
        tail = JointTail(4, 8)
        with torch.no_grad():  # so that the rankings of random images differ, and change within a few steps
            tail.layers[0].weight.mul_(16)
            tail.layers[2].weight.mul_(12)
            tail.layers[2].bias.copy_(-tail.layers[2].weight.sum() / 2)
        ranker = SiameseRanker(branch, tail, decoder)
    return ranker.to(dtype).eval()


def small_pairs(
    count: int, seed: int = 1, channels: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand((2, count, channels, PIXELS, PIXELS), generator=generator, dtype=dtype))


def stripes(count: int = 60, seed: int = 2) -> RankedImages:
    """Images whose attribute, 0 to 9, is the width of a white stripe."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 10, (count,), generator=generator)
    images = (torch.arange(PIXELS)[None, :] < values[:, None] + 1).float()[:, None, None, :].expand(-1, 1, PIXELS, -1)
    return RankedImages(images.contiguous(), values.float(), 0, 9, "width")
