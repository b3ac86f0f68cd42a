"""How a batch is made and what is read off its answers, in a form that the CPU runs at once and a CUDA graph holds.

A batch is asked for by a few columns of whole numbers, the bits of floating-point ones among them. All that is large,
images and maps, lies on the device already. In a captured graph a batch then costs one small copy to the device, one
replay and one small copy back.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import torch
from torch import Tensor

from apem_fast.running.transfer import sent


class Recipe(Protocol):
    """Makes model inputs of columns, and answers of logits."""

    @property
    def key(self) -> Hashable:
        """Graphs of one recipe are graphs of every other with an equal key: the same types, shapes, memory formats and
        numbers, and tensors that lie where they lay."""

    @property
    def device(self) -> torch.device:
        """Where it works."""

    def inputs(self, columns: Tensor) -> Tensor:
        """(M, C, H, W): what the model receives for columns (K, M) int64 on the device."""

    def answers(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(L, M): what is read off the logits (M, classes) of these inputs."""

    def unlike_any(self, size: int) -> Tensor:
        """Columns on the host of `size` inputs that are fit for the model and that nobody asks for."""


def padded(columns: Tensor, size: int) -> Tensor:
    """Columns of `size` inputs, the last one repeated."""
    missing = size - columns.shape[1]
    return columns if missing <= 0 else torch.cat([columns, columns[:, -1:].expand(-1, missing)], dim=1)


def to_device(recipe: Recipe, columns: Tensor) -> Tensor:
    """Columns of the host where the recipe works."""
    return sent(columns, recipe.device)
