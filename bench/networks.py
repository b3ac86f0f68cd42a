"""Networks and images for benchmarks.

EfficientNet-Lite0 and photographs need the demonstration's packages. Otherwise torchvision's networks have random
weights, which are enough to measure times, and images are random.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from apem_fast.relevance import STAGES
from apem_fast.running.clean import gradients_for, run_clean
from apem_fast.running.undisturbed import undisturbed

PHOTOGRAPHED = "efficientnet-lite0"
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SIDE = 224


@dataclass(frozen=True)
class Workload:
    """A model on a device, N images as it takes them and as pixels, and the gradient's maps at the papers' stages."""

    model: nn.Module
    images: Tensor  # (N, 3, H, W)
    pixels: Tensor  # (N, 3, H, W) in [0, 1]
    maps: dict[str, Tensor]  # (N, 1 or 3, H, W) in [0, 1]
    names: list[str]  # of the images


def workload(name: str, count: int, device: str) -> Workload:
    """A network by name, and images for it, repeated up to `count`."""
    model, images, pixels, names = _photographed() if name == PHOTOGRAPHED else _made_up(name, count)
    rows = torch.arange(count) % len(pixels)
    model, images, pixels = model.to(device), images[rows].to(device), pixels[rows].to(device)
    with undisturbed(model, images):
        attribution = run_clean(model, images, gradients_for(model, images.device)).loss_gradient
    maps = {stage: make(attribution, pixels, 99.0) for stage, make in STAGES.items()}
    return Workload(model, images, pixels, maps, [names[row] for row in rows.tolist()])


def _photographed() -> tuple[nn.Module, Tensor, Tensor, list[str]]:
    networks = importlib.import_module("apem_fast.experiment.inputs.networks")
    photographs = importlib.import_module("apem_fast.experiment.inputs.photographs").bundled_photographs()
    network = networks.load_network(PHOTOGRAPHED)
    pixels = torch.stack([network.pixels(one.open()) for one in photographs])
    return network.model, network.normalised(pixels), pixels, [one.name for one in photographs]


def _made_up(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor, list[str]]:
    """Spots of many sizes: noise alone would look the same to a network, whatever its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None).eval()
        generator = torch.Generator().manual_seed(1)
        pixels = torch.zeros(count, 3, SIDE, SIDE)
        for side in (4, 16, 64):
            spots = torch.rand((count, 3, side, side), generator=generator)
            pixels += nn.functional.interpolate(spots, size=(SIDE, SIDE), mode="bilinear") / 3
    return model, (pixels - MEAN) / STD, pixels, [f"spots {i}" for i in range(count)]
