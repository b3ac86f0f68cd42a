"""A network and images that a Python program passed in, as a run uses them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast.experiment.inputs.image_folders import ImageSet, unique_names
from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.networks import GIVEN, outputs_of, usual_categories
from apem_fast.experiment.inputs.photographs import Photograph

UNKNOWN = -1
"""The label of an image whose true class is unknown."""
_IMAGE_KEYS, _LABEL_KEYS = ("pixel_values", "image", "images"), ("labels", "label")
_ROUNDING = 1e-3  # how far outside [0, 1] pixels may lie after their normalisation is undone


class GivenImages:
    """Images by number, each (C, H, W) as the model receives it, with their labels if these are known.

    Args:
        images: (N, C, H, W); a data set, which is read image by image; or a DataLoader or another iterable of batches,
            which is read once and kept in memory. Items and batches are tensors, tuples (images, labels), or
            dictionaries with "pixel_values" or "image", and optionally "labels" or "label".
        labels: (N,) the true classes, -1 if unknown; None takes the labels that come with the images.
        progress: called with the number of images read so far, while a DataLoader is read.

    Raises:
        TypeError, ValueError: one sentence.
    """

    def __init__(
        self, images: Any, labels: Any = None, progress: Callable[[int], None] = lambda images_read: None
    ) -> None:
        if not isinstance(images, Tensor | np.ndarray) and _is_iterated(images):
            images, brought = _read_batches(images, progress)
            labels = brought if labels is None else labels
        self._images = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
        if isinstance(self._images, Tensor) and self._images.dim() != 4:
            raise ValueError(f"images must have shape (N, C, H, W) (got {tuple(self._images.shape)})")
        self.count = len(self._images)
        if not self.count:
            raise ValueError("images must hold at least one image (got none)")
        self._labels = None if labels is None else _whole_numbers(labels, self.count)
        self._seen: dict[int, int] = {}  # labels that came with items
        self.shape = tuple(self.image(0).shape)

    def image(self, number: int) -> Tensor:
        """One image, (C, H, W) of floats, on its own device."""
        if isinstance(self._images, Tensor):
            return _floating(self._images[number].detach())
        image, label = _parts(self._images[number])
        if not isinstance(image, Tensor) or image.dim() != 3:
            came = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(f"images: a data set must give tensors (C, H, W), or such with a label (got {came})")
        if label is not None:
            self._seen[number] = int(label)
        if hasattr(self, "shape") and tuple(image.shape) != self.shape:
            raise ValueError(
                f"images must all have the same shape {self.shape} (got {tuple(image.shape)} at number {number})"
            )
        return _floating(image.detach())

    def label(self, number: int) -> int:
        """The true class of an image, or `UNKNOWN`."""
        if self._labels is not None:
            return self._labels[number]
        if number not in self._seen and not isinstance(self._images, Tensor):
            self.image(number)
        return self._seen.get(number, UNKNOWN)

    @property
    def digest(self) -> str:
        """A digest of the images in memory; images of a data set are compared one by one while the run reads them."""
        digest = hashlib.blake2b(repr((self.count, self.shape, self._labels)).encode(), digest_size=16)
        if isinstance(self._images, Tensor):
            for image in self._images:  # one at a time on the CPU
                digest.update(image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class GivenNetwork(Network):
    """A model that a Python program passed in, with its images. It is used unchanged, on its own device.

    `mean` and `std` undo the images' normalisation: pixels are images * std + mean.
    """

    given: GivenImages = field(repr=False)
    numbers: Mapping[str, int] = field(repr=False)

    def read(self, photograph: Photograph) -> Tensor:
        return self.given.image(self.numbers[photograph.name])

    def dropped(self, photograph: Photograph) -> str:
        return ""

    def normalised(self, pixels: Tensor) -> Tensor:
        """The images themselves: `read` returns them as the model receives them."""
        return pixels

    def images_and_pixels(self, read: Tensor) -> tuple[Tensor, Tensor]:
        return read, self.pixels_of(read)

    def pixels_of(self, images: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu").view(-1, 1, 1).to(images)
            for values in (self.mean, self.std)
        )
        pixels = images * std + mean
        low, high = float(pixels.min()), float(pixels.max())
        if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
            raise ValueError(
                f"images must have pixels in [0, 1] once images * std + mean undoes their normalisation: give the mean "
                f"and std they were normalised with (got mean={_short(self.mean)}, std={_short(self.std)}, and so "
                f"pixels from {low:.3g} to {high:.3g})"
            )
        return pixels.clamp(0, 1)

    def accepted(self, photograph: Photograph) -> list[int]:
        label = self.given.label(self.numbers[photograph.name])
        if label == UNKNOWN:
            return []
        if not 0 <= label < len(self.categories):
            raise ValueError(
                f"labels must lie in 0...{len(self.categories) - 1}, or be {UNKNOWN} where they are not known "
                f"(got {label})"
            )
        return [label]


@dataclass(frozen=True)
class GivenImageSet(ImageSet):
    """The images of a Python program, whose digest is that of their values."""

    given_digest: str = ""

    @property
    def digest(self) -> str:
        return self.given_digest


def given_inputs(
    model: nn.Module,
    images: GivenImages,
    *,
    classes: Sequence[str] | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    names: Sequence[str] | None = None,
) -> tuple[GivenNetwork, GivenImageSet]:
    """The network and the images of a run.

    Args:
        model: in evaluation mode.
        images: of it.
        classes: the name of each class; None for ImageNet's if there are 1,000, or numbers.
        mean, std: of the images' normalisation, a number or one for each channel.
        names: of the images; None numbers them.

    Raises:
        ValueError: one sentence.
    """
    if names is None:
        digits = len(str(images.count - 1))
        names = [f"{number:0{digits}d}" for number in range(images.count)]
    if len(names) != images.count or len(set(names)) != images.count:
        raise ValueError(
            f"names must be {images.count} different names, one for each image (got {len(names)}, "
            f"{len(set(names))} different)"
        )
    safe = unique_names(list(names))
    numbers = {safe[name]: number for number, name in enumerate(names)}
    photographs = tuple(
        Photograph(safe[name], name, (), f"image {number}", Path(safe[name])) for number, name in enumerate(names)
    )
    title = type(getattr(model, "model", model)).__name__
    channels = images.shape[0]
    if classes is None:
        classes = usual_categories(outputs_of(model, images.image(0)[None].to(device_of(model)), title))
    network = GivenNetwork(
        name=f"{GIVEN}{title}",
        model=model,
        size=images.shape[-1],
        mean=_of_channels("mean", mean, channels),
        std=_of_channels("std", std, channels),
        categories=tuple(classes),
        given=images,
        numbers=numbers,
    )
    return network, GivenImageSet(photographs, given_digest=images.digest)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters, or of its buffers if it has none."""
    every = (*model.parameters(), *model.buffers())
    return every[0].device if every else torch.device("cpu")


def _of_channels(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    values = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    values = values * channels if len(values) == 1 else values
    if len(values) != channels:
        raise ValueError(f"{name} must be a number, or one for each of the {channels} channels (got {len(values)})")
    return tuple(values)


def _short(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{value:g}' for value in values)})"


def _is_iterated(images: Any) -> bool:
    """Whether these come as batches: from a DataLoader, or any iterable without items by number."""
    if isinstance(images, torch.utils.data.DataLoader):
        return True
    if hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return False
    if hasattr(images, "__iter__"):
        return True
    raise TypeError(
        f"images must be a tensor (N, C, H, W), a data set, or a DataLoader or other iterable of batches "
        f"(got {type(images).__name__})"
    )


def _read_batches(batches: Any, progress: Callable[[int], None]) -> tuple[Tensor, Tensor | None]:
    parts: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for batch in batches:
        images, of_batch = _parts(batch)
        if not isinstance(images, Tensor) or images.dim() != 4:
            came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images: batches must be tensors (N, C, H, W), or such with labels (got {came})")
        if parts and images.shape[1:] != parts[0].shape[1:]:
            raise ValueError(
                f"images must all have the same shape {tuple(parts[0].shape[1:])} (got {tuple(images.shape[1:])})"
            )
        parts.append(images.detach().cpu())
        if of_batch is not None:
            labels.append(torch.as_tensor(of_batch).flatten())
        count += len(images)
        progress(count)
    if not parts:
        raise ValueError("images must hold at least one image (got none)")
    return torch.cat(parts), torch.cat(labels) if labels else None


def _parts(item: Any) -> tuple[Any, Any]:
    """The images of an item or a batch, and its labels if it has any."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        return image, next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _floating(image: Tensor) -> Tensor:
    if not image.is_floating_point():
        raise TypeError(
            f"images must be of floats, as the model receives them (got {image.dtype}; a transform such as "
            "torchvision's ToDtype(torch.float32, scale=True) converts them)"
        )
    return image


def _whole_numbers(labels: Any, count: int) -> list[int]:
    values = torch.as_tensor(labels)
    if values.is_floating_point() or values.is_complex() or tuple(values.shape) != (count,):
        raise ValueError(
            f"labels must be {count} whole numbers, one for each image (got {values.dtype}, shape "
            f"{tuple(values.shape)})"
        )
    return values.tolist()
