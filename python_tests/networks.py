"""Small networks, images and maps for the tests, and the metric as a reader of P1 would write it."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn


def small_network(seed: int = 0, channels: int = 3, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An untrained convolutional classifier of 16 x 16 images into 10 classes, in eval mode."""
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    torch.set_rng_state(generator_state)
    return network.to(dtype).eval()


def images_and_maps(n: int, channels: int = 3, map_channels: int = 1, seed: int = 0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, 16, 16, generator=generator)
    return images.to(dtype), (torch.rand(n, map_channels, 16, 16, generator=generator) ** 3).to(dtype)


class Given:
    """The `Recipe` of images that are there: columns of their numbers, and the logits themselves for an answer."""

    def __init__(self, images: Tensor):
        self.images = images
        self.device = images.device
        self.columns = torch.arange(len(images))[None]  # on the host, as columns are

    @property
    def key(self) -> Hashable:
        return id(self)

    def inputs(self, columns: Tensor) -> Tensor:
        return self.images[columns[0]]

    def answers(self, logits: Tensor, columns: Tensor) -> Tensor:
        return logits

    def unlike_any(self, size: int) -> Tensor:
        return torch.zeros(1, size, dtype=torch.int64)


def literal_epsilons(
    model: nn.Module, image: Tensor, relevance: Tensor, step: float, max_epsilon: float
) -> list[tuple[float, bool]]:
    """P1 section III-A, one image and one epsilon at a time: [(epsilon_minus, flipped), (epsilon_plus, flipped)]."""
    leaf = image[None].clone().requires_grad_()
    logits = model(leaf)
    label = int(logits.argmax())
    loss = nn.functional.cross_entropy(logits.double(), torch.tensor([label], device=logits.device))
    (gradient,) = torch.autograd.grad(loss, leaf)
    answers = []
    for values in (relevance, 1 - relevance):
        values = values.expand_as(image)
        direction = values / values.sum(dtype=torch.float64).to(values.dtype) * gradient[0].sign()
        k, flipped = 0, False
        with torch.no_grad():
            while not flipped and (k + 1) * step <= max_epsilon:
                k += 1
                flipped = int(model((image + k * step * direction)[None]).argmax()) != label
        answers.append((k * step if flipped else max_epsilon, flipped))
    return answers


def epsilons_of(result) -> list[list[tuple[float, bool]]]:
    """An ApemResult in the shape of `literal_epsilons`, image by image."""
    columns = (result.epsilon_minus, result.flipped_minus, result.epsilon_plus, result.flipped_plus)
    return [[(a, b), (c, d)] for a, b, c, d in zip(*(column.tolist() for column in columns))]


class Changed(nn.Module):
    """A network whose logits are changed by a function of them."""

    def __init__(self, network, change):
        super().__init__()
        self.network, self.change = network, change
        self.eval()

    def forward(self, images):
        return self.change(self.network(images))
