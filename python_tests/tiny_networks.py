"""Small untrained classifiers of 24-pixel photographs, as a user's functions return them, and folders of
photographs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.photographs import bundled_photographs

CATEGORIES = ("tabby", "espresso", "missile", "moped", "daisy")


def tiny() -> Network:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 10 * 10, 5))
    return Network("tiny", model, 24, (0.5,) * 3, (0.25,) * 3, CATEGORIES)


def tiny_with_relu() -> Network:
    network = tiny()
    network.model[1] = nn.ReLU()
    return network


def pooled() -> nn.Module:
    """A network that takes images of any size."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 7))


def different_every_time() -> Network:
    network = tiny()
    network.model[0].reset_parameters()
    return network


def number() -> int:
    return 3


def save_photograph(path: Path, number: int, side: int = 40) -> None:
    """The number-th bundled photograph as a small file of the kind that the path's suffix names."""
    bundled = bundled_photographs()
    path.parent.mkdir(parents=True, exist_ok=True)
    bundled[number % len(bundled)].open().resize((side, side)).save(path)


def class_tree(folder: Path, each: int = 4) -> Path:
    """`each` photographs in each of five class folders, numbered through; the classes are the order of the folders."""
    for label, category in enumerate(CATEGORIES):
        for i in range(each):
            save_photograph(folder / category.title() / f"photo {label * each + i}.JPEG", label * each + i)
    return folder
