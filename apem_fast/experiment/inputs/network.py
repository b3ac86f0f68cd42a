"""A network to evaluate: how its inputs are made of photographs, and what its outputs are called."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from apem_fast.experiment.inputs.imagenet import NEEDED
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.extras import MissingExtra
from apem_fast.options import BoundsOf


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier, ready to use: in evaluation mode, without parameter gradients.

    Args:
        name: as given on the command line.
        model: (N, 3, size, size) normalised -> logits (N, classes).
        size: pixels of a side.
        mean, std: one per channel; a normalised image is (pixels - mean) / std.
        categories: the name of each class.
        resize: the size of the shorter side before the centre of `size` pixels is cut out; None takes the central
            square of the picture.
        interpolation: of the scaling: "bicubic", "bilinear", ...
    """

    name: str
    model: nn.Module
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    categories: tuple[str, ...]
    resize: int | None = None
    interpolation: str = "bicubic"

    def read(self, photograph: Photograph) -> Tensor:
        """The pixels of a photograph, (3, size, size).

        Raises:
            OSError: its file is missing, damaged or not an image.
        """
        return self.pixels(photograph.open())

    def dropped(self, photograph: Photograph) -> str:
        """What `read` leaves out of a photograph's file, in words; empty if nothing."""
        return photograph.dropped()

    def pixels(self, picture: Image.Image) -> Tensor:
        """The centre of a picture at the network's size: (3, size, size), float32 in [0, 1], on the CPU."""
        resample = Image.Resampling[self.interpolation.upper()]
        picture = picture.convert("RGB")
        if self.resize is None:
            width, height = picture.size
            side = min(width, height)
            left, upper = (width - side) // 2, (height - side) // 2
            square = picture.resize((self.size, self.size), resample, (left, upper, left + side, upper + side))
        else:
            square = _torchvision_centre(picture, self.resize, self.size, resample)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous().float() / 255

    def normalised(self, pixels: Tensor) -> Tensor:
        """The model's input for pixels (N, 3, H, W) in [0, 1]."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1).to(pixels)
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def images_and_pixels(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """The model's input and the pixels in [0, 1] that a person sees, from results of `read`; both (N, 3, H, W)."""
        return self.normalised(read), read

    def pixels_of(self, images: Tensor) -> Tensor:
        """The pixels (N, 3, H, W) of the model's input, which undoes `normalised`."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1).to(images)
            for values in (self.mean, self.std)
        )
        return images * std + mean

    def extremes(self) -> tuple[Tensor, Tensor]:
        """The model's input for pixels of 0 and for pixels of 1, with a number for each channel: (C,) float32."""
        mean, std = (torch.tensor(values, dtype=torch.float32, device="cpu") for values in (self.mean, self.std))
        return (0 - mean) / std, (1 - mean) / std

    def bounds(self, bounds: BoundsOf | str) -> BoundsOf:
        """A run's bounds as a pair in the model's input space; "pixels" stands for the range of pixels, 0 to 1."""
        if isinstance(bounds, str):
            low, high = (tuple(values.tolist()) for values in self.extremes())
            return low if len(low) > 1 else low[0], high if len(high) > 1 else high[0]
        return bounds

    def accepted(self, photograph: Photograph) -> list[int]:
        """The correct classes of a photograph, the best first; empty if none is known."""
        if photograph.classes:
            return list(photograph.classes)
        return [self.categories.index(name) for name in photograph.categories if name in self.categories]

    @property
    def digest(self) -> str:
        """A digest of everything that answers depend on: weights, preparation of images, categories."""
        digest = hashlib.blake2b(digest_size=16)
        prepared = [getattr(self, field.name) for field in dataclasses.fields(Network)[2:]]  # all but name and model
        digest.update(repr((type(self.model).__name__, prepared)).encode())
        for name, value in self.model.state_dict().items():
            digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def _torchvision_centre(picture: Image.Image, resize: int, size: int, resample: Image.Resampling) -> Image.Image:
    try:
        from torchvision.transforms.functional import InterpolationMode, center_crop
        from torchvision.transforms.functional import resize as resized
    except ImportError:
        raise MissingExtra(f"images are prepared for this network by torchvision, so it needs {NEEDED}") from None

    mode = InterpolationMode[resample.name]
    return center_crop(resized(picture, [resize], interpolation=mode), [size, size])
