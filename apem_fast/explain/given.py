"""Explanations that a Python program passed in: a method under a name that the program chose, and maps in memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast.explain.explainer import Explainer
from apem_fast.explain.stored_maps import map_of_image


@dataclass(frozen=True)
class Given(Explainer):
    """The entry in a run's record for a method that a Python program passed in: its title and its description.

    It cannot explain anything: only the program that made the run has the method.

    Args:
        title: the program's name for it.
        method: a description, so that another method of the same title is not taken for it.
    """

    title: str
    method: str = ""

    @property
    def name(self) -> str:  # type: ignore[override]  # an object's own: a class variable of the other methods
        return self.title

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        raise ValueError(
            f"{self.title}: this method was handed over by a Python program, and only that program can explain with it"
        )


@dataclass(frozen=True, eq=False)
class MapsInMemory(Explainer):
    """Maps of a run's images in memory. Shapes and scales are as for `StoredMaps`.

    Args:
        title: the maps' name in tables.
        maps: the map of each image, by the image's name.
        names: the names of the images to explain; `for_images` sets them.
    """

    title: str
    maps: Mapping[str, np.ndarray]
    names: tuple[str, ...] = ()
    needs_model: ClassVar[bool] = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.title

    @property
    def options(self) -> dict[str, Any]:
        return {"title": self.title}

    @property
    def digest(self) -> str:
        """Different for other maps."""
        digest = hashlib.blake2b(digest_size=8)
        for name, values in self.maps.items():
            digest.update(
                repr((name, values.shape, str(values.dtype))).encode() + np.ascontiguousarray(values).tobytes()
            )
        return digest.hexdigest()

    def has(self, name: str) -> bool:
        return name in self.maps

    def for_images(self, names: Sequence[str]) -> MapsInMemory:
        return dataclasses.replace(self, names=tuple(names))

    def images_at_once(self, device: torch.device) -> int:
        return max(1, len(self.names))

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if len(self.names) != len(images):
            raise ValueError(f"{self.name}: maps are looked up by the images' names (got {len(images)} images without)")
        return torch.cat(
            [
                map_of_image(np.asarray(self.maps[name], dtype=np.float64), images[n : n + 1], f"the map of {name}")
                for n, name in enumerate(self.names)
            ]
        )
