"""A batch of model inputs before it is written, so that it can be written where it will be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """What a model is to receive, (M, C, H, W): as a tensor of its own, or written into one that is there, such as the
    input of a captured graph."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    memory_format: torch.memory_format
    make: Callable[[], Tensor]
    """Returns them as a new tensor."""
    write: Callable[[Tensor], object]
    """Writes them into a tensor of that shape and type, contiguous or channels-last."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Inputs that are written already."""
        return cls(tuple(tensor.shape), tensor.dtype, format_of(tensor), lambda: tensor, lambda out: out.copy_(tensor))

    def __len__(self) -> int:
        return self.shape[0]

    def filled_up(self, size: int) -> Tensor:
        """A tensor of at least so many, the last one repeated."""
        made = self.make()
        missing = size - len(made)
        if missing <= 0:
            return made
        last = made[-1:].expand(missing, *made.shape[1:])
        return torch.cat([made, last]).contiguous(memory_format=self.memory_format)


def format_of(images: Tensor) -> torch.memory_format:
    """Channels-last where that, and not contiguous, is how images (N, C, H, W) lie."""
    if not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
