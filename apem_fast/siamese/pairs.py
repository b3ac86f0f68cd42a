"""Images with an ordered attribute, and the pairs and targets that a ranker learns from (P3 sections 3.2, 5.2.1,
5.3.1).

Three sources: scikit-learn's handwritten digits at 28 pixels (always there), torchvision's MNIST and a folder of
UTKFace (where the user has them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

__all__ = [
    "PairDataset",
    "RankedImages",
    "binary_target",
    "digits",
    "metric_target",
    "mnist",
    "utkface",
]


def metric_target(first: Tensor, second: Tensor, low: float, high: float) -> Tensor:
    """(v_A - v_B) / (2 * (high - low)) + 1/2: the ranking of a metric in [0, 1] (P3 equations 15, 32 and 37)."""
    return (first - second) / (2 * (high - low)) + 0.5


def binary_target(first: Tensor, second: Tensor) -> Tensor:
    """1 where A ranks above B, 0 where B ranks above A (P3 equation 13); a tie counts as A above B (section 3.2)."""
    return (first >= second).to(torch.get_default_dtype())


@dataclass(frozen=True)
class RankedImages:
    """Images of one size and the attribute that orders them.

    Attributes:
        images: (N, C, H, W), uint8, or floating in [0, 1].
        values: (N,) float32, the attribute of each image, on the device of `images`.
        low, high: the range of the attribute that targets are normalised by; not necessarily attained.
        attribute: what `values` are, for captions.
        skipped: names of files that could not be read.
    """

    images: Tensor
    values: Tensor
    low: float
    high: float
    attribute: str = "value"
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or len(self.images) < 1:
            raise ValueError(f"RankedImages: images must have shape (N, C, H, W) (got {tuple(self.images.shape)})")
        if tuple(self.values.shape) != (len(self.images),):
            raise ValueError(
                f"RankedImages: values must have shape ({len(self.images)},), one for each image "
                f"(got {tuple(self.values.shape)})"
            )
        if not self.low < self.high:
            raise ValueError(f"RankedImages: low must be less than high (got low={self.low}, high={self.high})")
        if not bool(((self.values >= self.low) & (self.values <= self.high)).all()):
            raise ValueError(
                f"RankedImages: values must lie in [low, high] = [{self.low:g}, {self.high:g}] "
                f"(got min={self.values.min():g}, max={self.values.max():g})"
            )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> RankedImages:
        """The same on another device: beside the ranker, images need not be sent there for each step."""
        return replace(self, images=self.images.to(device), values=self.values.to(device))

    def batch(self, index: Tensor | slice) -> Tensor:
        """The images at `index` as floating point in [0, 1]."""
        images = self.images[index]
        return images if images.is_floating_point() else images.to(torch.get_default_dtype()) / 255

    def target(self, first: Tensor, second: Tensor) -> Tensor:
        """The metric target of the pairs (first[i], second[i]) of image indices."""
        return metric_target(self.values[first], self.values[second], self.low, self.high)

    def draw_pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of `count` random pairs, as P3 draws them: both images at random, with replacement."""
        return tuple(torch.randint(len(self), (2, count), device=generator.device, generator=generator))

    def split(self, held_out: float, generator: torch.Generator) -> tuple[RankedImages, RankedImages]:
        """A random part to learn from and the fraction `held_out` to judge by."""
        if not 0 < held_out < 1:
            raise ValueError(f"split: held_out must lie between 0 and 1 (got {held_out})")
        order = torch.randperm(len(self), device=generator.device, generator=generator)
        cut = len(self) - max(1, round(len(self) * held_out))
        return tuple(replace(self, images=self.images[i], values=self.values[i]) for i in (order[:cut], order[cut:]))

    def with_shuffled_values(self, generator: torch.Generator) -> RankedImages:
        """The same images with each other's attributes: what label randomisation trains on (P3 section 5.3.9)."""
        order = torch.randperm(len(self), device=generator.device, generator=generator)
        return replace(self, values=self.values[order])


class PairDataset(Dataset):
    """Random pairs of `source` with their targets as a map-style data set, the same at every visit.

    Items are (A, B, target): two images (C, H, W) in [0, 1] and a number in [0, 1]. `target` is a function of two
    (N,) tensors of attributes; by default the metric target over the range of `source`.
    """

    def __init__(
        self,
        source: RankedImages,
        count: int,
        generator: torch.Generator,
        target: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.source = source
        self.first, self.second = source.draw_pairs(count, generator)
        values = source.values[self.first], source.values[self.second]
        self.targets = target(*values) if target else metric_target(*values, source.low, source.high)

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        pair = self.source.batch(torch.stack([self.first[index], self.second[index]]))
        return pair[0], pair[1], self.targets[index]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return (self[i] for i in range(len(self)))


def digits(pixels: int = 28) -> RankedImages:
    """scikit-learn's 1797 handwritten digits, enlarged bilinearly from 8 to `pixels` pixels: white on black in [0,
    1]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).to(torch.float32)[:, None] / 16
    images = interpolate(images, size=(pixels, pixels), mode="bilinear", align_corners=False)
    return RankedImages(images, torch.from_numpy(data.target).to(torch.float32), 0, 9, "digit")


def mnist(folder: str | Path, train: bool = True) -> RankedImages:
    """Torchvision's MNIST in `folder`, which is not downloaded: 28 pixels, white on black (P3 equation 32)."""
    from torchvision.datasets import MNIST

    try:
        data = MNIST(str(folder), train=train, download=False)
    except RuntimeError as error:
        raise ValueError(f"mnist: folder must hold torchvision's MNIST (got {folder}: {error})") from error
    return RankedImages(data.data[:, None], data.targets.to(torch.float32), 0, 9, "digit")


def utkface(folder: str | Path, pixels: int = 112) -> RankedImages:
    """A folder of UTKFace images, `[age]_[gender]_[race]_[date&time].jpg`, ordered by age in [0, 116] (P3 equation 37).

    Files whose names give no age in that range, or that are no images, are left out and listed in `skipped`.

    Returns:
        uint8 images (N, 3, pixels, pixels), resized where they have another size.
    """
    import numpy
    from PIL import Image, UnidentifiedImageError

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"utkface: folder must be a folder of images (got {folder})")
    images, ages, skipped = [], [], []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.name.split("_")
        age = int(parts[0]) if len(parts) >= 4 and parts[0].isascii() and parts[0].isdigit() else -1
        try:
            if not 0 <= age <= 116:
                raise ValueError("no age in the name")
            with Image.open(path) as file:
                image = file.convert("RGB").resize((pixels, pixels), Image.Resampling.BILINEAR)
        except (ValueError, OSError, UnidentifiedImageError):
            skipped.append(str(path.relative_to(folder)))
            continue
        images.append(torch.from_numpy(numpy.array(image)).permute(2, 0, 1))
        ages.append(float(age))
    if not images:
        raise ValueError(f"utkface: folder must hold images named age_gender_race_date.jpg (got none in {folder})")
    return RankedImages(torch.stack(images), torch.tensor(ages), 0, 116, "age", tuple(skipped))
