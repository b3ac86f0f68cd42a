"""Small networks of many kinds, trained on scikit-learn's digits in seconds, which give many real rays.

The digits are enlarged to 16 x 16 pixels in [0, 1], one channel. Training is seeded, so a network is the same each time
on one machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from apem_fast.seeding import seeded

SIZE = 16
STEPS = 300
BATCH = 64


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 1, 16, 16) in [0, 1], and their classes."""
    data = load_digits()
    pixels = torch.tensor(data.images / 16).float()[:, None]
    return nn.functional.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear"), torch.tensor(data.target)


def convolutional(activation: Callable[[], nn.Module], normalised: bool = False) -> nn.Module:
    def unit(inputs: int, outputs: int) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(outputs)] if normalised else []
        return [nn.Conv2d(inputs, outputs, 3, padding=1), *norm, activation()]

    return nn.Sequential(
        *unit(1, 16),
        *unit(16, 16),
        nn.MaxPool2d(2),
        *unit(16, 32),
        *unit(32, 32),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIZE * SIZE, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


class VisionTransformer(nn.Module):
    """Patches of 4 x 4, width 48, two blocks before the norms, a learnt position, the mean over the patches."""

    def __init__(self, width: int = 48, depth: int = 2):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, (SIZE // 4) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": lambda: convolutional(nn.ReLU),
    "ReLU with batch norm": lambda: convolutional(nn.ReLU, normalised=True),
    "GELU": lambda: convolutional(nn.GELU),
    "SiLU with batch norm": lambda: convolutional(nn.SiLU, normalised=True),
    "tanh": lambda: convolutional(nn.Tanh),
    "wide MLP": wide,
    "vision transformer": VisionTransformer,
    "ReLU, adversarially trained": lambda: convolutional(nn.ReLU),
    "SiLU, adversarially trained": lambda: convolutional(nn.SiLU, normalised=True),
}
ADVERSARIAL = "adversarially trained"
BUDGET = 0.15  # of the perturbation of a pixel in adversarial training


def attacked(network: nn.Module, images: Tensor, labels: Tensor, steps: int = 5) -> Tensor:
    """Projected gradient ascent of the loss in the l-infinity ball."""
    shift = torch.empty_like(images).uniform_(-BUDGET, BUDGET)
    for _ in range(steps):
        shift.requires_grad_(True)
        loss = nn.functional.cross_entropy(network(images + shift), labels)
        (gradient,) = torch.autograd.grad(loss, shift)
        shift = (shift.detach() + BUDGET / 2 * gradient.sign()).clamp(-BUDGET, BUDGET)
    return images + shift


def trained(name: str, seed: int = 0) -> nn.Module:
    """One of `NETWORKS`, trained, in evaluation mode."""
    images, labels = digits()
    with seeded(seed):
        network = NETWORKS[name]()
        optimiser = torch.optim.AdamW(network.parameters(), 2e-3)
        for _ in range(STEPS):
            chosen = torch.randint(0, len(images), (BATCH,))
            batch, truth = images[chosen], labels[chosen]
            if ADVERSARIAL in name:
                batch = attacked(network, batch, truth)
            loss = nn.functional.cross_entropy(network(batch), truth)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()
