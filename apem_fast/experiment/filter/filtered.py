"""A photograph with its map before and after the filter: the record, and how it lies on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apem_fast.filter.filtering import FilterResult
from apem_fast.whole_files import written_whole


@dataclass(frozen=True)
class FilteredPhotograph:
    """One photograph and what the filter made of its map.

    Args:
        name: as in `Photograph`.
        subject: what a person would call it.
        prediction: what the network calls it.
        pixels: (3, H, W) in [0, 1].
        relevance, filtered: the map before and after, (1 or C, H, W) in [0, 1].
        numbers: by column of the table; see `FilterResult`.
        curve: (2, K): shares of the map that are gone, ascending, and the score from there on; as far as it is known.
    """

    name: str
    subject: str
    prediction: str
    pixels: Tensor
    relevance: Tensor
    filtered: Tensor
    numbers: dict[str, Any]
    curve: Tensor

    @classmethod
    def of(
        cls, result: FilterResult, *, name: str, subject: str, prediction: str, pixels: Tensor, relevance: Tensor
    ) -> FilteredPhotograph:
        """From the result of this photograph alone, and its pixels and map, (1, C, H, W)."""
        numbers = result.to_dataframe().iloc[0].to_dict()
        plain = {key: value.item() if hasattr(value, "item") else value for key, value in numbers.items()}
        curve = torch.stack([result.curves[0].removed_share, result.curves[0].score])
        maps = relevance[0].cpu(), result.relevance[0].cpu()
        return cls(name, subject, prediction, pixels[0].cpu(), *maps, plain, curve)

    def save(self, path: Path) -> None:
        """Write the file whole: whoever reads it finds all or nothing."""
        with written_whole(path, own=True) as part:
            torch.save(vars(self), part)

    @classmethod
    def load(cls, path: Path) -> FilteredPhotograph:
        """Read what `save` wrote; nothing in the file is run."""
        return cls(**torch.load(path, weights_only=True))
