"""A photograph with its map before and after the filter: the record, and its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apem_fast.files.checksums import Damaged, checked_tensors, tensors_with_checksum
from apem_fast.files.whole import write_whole
from apem_fast.filter.results import FilterResult


@dataclass(frozen=True)
class FilteredPhotograph:
    """One photograph with its map before and after the filter.

    Args:
        name: as in `Photograph`.
        subject: what a person would call it.
        prediction: the name of the predicted class.
        explainer: the explainer's key.
        method: the explainer's name.
        stage: the name of the map's stage.
        pixels: (3, H, W) in [0, 1].
        relevance, filtered: the map before and after, (1 or C, H, W) in [0, 1].
        numbers: by column of the table; see `FilterResult`.
        curve: (2, K): ascending shares of the map that are 0, and the score from each on; as far as it is known.
    """

    name: str
    subject: str
    prediction: str
    explainer: str
    method: str
    stage: str
    pixels: Tensor
    relevance: Tensor
    filtered: Tensor
    numbers: dict[str, Any]
    curve: Tensor

    @classmethod
    def of(cls, result: FilterResult, *, pixels: Tensor, relevance: Tensor, **names: str) -> FilteredPhotograph:
        """From the result of this photograph alone, its pixels and map, (1, C, H, W), and the fields that are names."""
        numbers = result.to_dataframe().iloc[0].to_dict()
        plain = {key: value.item() if hasattr(value, "item") else value for key, value in numbers.items()}
        curve = torch.stack([result.curves[0].removed_share, result.curves[0].score])
        relevance, filtered = relevance[0].cpu(), result.relevance[0].cpu()
        return cls(**names, pixels=pixels[0].cpu(), relevance=relevance, filtered=filtered, numbers=plain, curve=curve)

    def save(self, path: Path) -> None:
        """Writes the file whole, so that a reader finds all of it or nothing."""
        write_whole(path, tensors_with_checksum(vars(self)))

    @classmethod
    def load(cls, path: Path) -> FilteredPhotograph:
        """Reads what `save` wrote. No code in the file is run.

        Raises:
            Damaged: it is not what was written.
        """
        try:
            return cls(**checked_tensors(path.read_bytes()))
        except TypeError as error:  # it has other fields
            raise Damaged(str(error)) from None
