"""Where a small piecewise linear network flips along a ray, traced from bend to bend: known without a scan.

Along a ray the input is affine in epsilon, and so is every value of the network until some ReLU or maximum changes its
mind. From one such bend to the next the margin is a straight line, whose zero is a quotient. In float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LINEAR = (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout)


def first_flip(network: nn.Sequential, image: Tensor, direction: Tensor, limit: float) -> float:
    """The least epsilon at which another class is above the prediction at 0; infinity if there is none up to `limit`.

    Args:
        network: of layers in float64, in evaluation mode.
        image, direction: (1, C, H, W) float64.
    """
    label = int(network(image).argmax())
    at = 0.0
    while at < limit:
        offset, slope, bend = _until_the_next_bend(network, image, direction, at)
        end = min(bend, limit)
        others = [j for j in range(offset.shape[1]) if j != label]
        fall = (slope[0, others] - slope[0, label]).tolist()
        margin = (offset[0, label] - offset[0, others]).tolist()
        zeros = [m / f for m, f in zip(margin, fall) if f > 0 and at <= m / f <= end]
        if zeros:
            return min(zeros)
        at = end
    return math.inf


def _until_the_next_bend(network: nn.Sequential, image: Tensor, direction: Tensor, at: float) -> tuple:
    """The logits' offsets and slopes from `at` on, and where that ends."""
    offset, slope, bend = image, direction, math.inf
    inside = at + 1e-9 * max(1.0, at)  # which side of a bend counts at the bend itself
    for layer in network:
        if isinstance(layer, LINEAR):
            offset, slope = layer(offset), layer(slope) - layer(torch.zeros_like(slope))
        elif isinstance(layer, nn.ReLU):
            bend = min(bend, _next_zero(offset, slope, inside))
            on = (offset + inside * slope > 0).double()
            offset, slope = offset * on, slope * on
        elif isinstance(layer, nn.MaxPool2d):
            size = layer.kernel_size
            offsets, slopes = (t.unfold(2, size, size).unfold(3, size, size).flatten(4) for t in (offset, slope))
            best = (offsets + inside * slopes).argmax(dim=-1, keepdim=True)
            chosen, its_slope = offsets.gather(-1, best), slopes.gather(-1, best)
            bend = min(bend, _next_zero(chosen - offsets, its_slope - slopes, inside))
            offset, slope = chosen[..., 0], its_slope[..., 0]
        else:
            raise TypeError(f"no piecewise linear layer: {type(layer).__name__}")
    return offset, slope, bend


def _next_zero(offset: Tensor, slope: Tensor, after: float) -> float:
    zero = (-offset / slope)[slope != 0]
    zero = zero[zero > after]
    return float(zero.min()) if len(zero) else math.inf


def with_a_dip(start: float, width: float, depth: float, end: float) -> nn.Sequential:
    """A network of one number, s, the sum of its 16 inputs, that prefers class 0 of two by a margin with a dip.

    The margin is 1 + depth at s = 0 and falls on a straight line to 1 at `end` and to 0 at `end` + 1. In between is a
    steep V that crosses 0 at `start` and at `start` + `width`, and begins half a width before.
    """
    slope = -depth / end
    before, middle = start - width / 2, start + width / 2
    steep = (1 + depth + slope * before) / (width / 2)
    after = (1 + depth + steep * (start + width)) / (steep - slope)  # where the V meets the straight line again
    bends = torch.tensor([-1, before, middle, after, end], dtype=torch.float64)
    turns = torch.tensor([slope, -steep - slope, 2 * steep, slope - steep, -1 - slope], dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 2)).double().eval()
    with torch.no_grad():
        network[1].weight.fill_(1.0)
        network[1].bias.copy_(-bends)
        network[3].weight.copy_(torch.stack([turns, torch.zeros_like(turns)]))
        network[3].bias.copy_(torch.tensor([1 + depth - slope, 0.0]))
    return network.requires_grad_(False)
