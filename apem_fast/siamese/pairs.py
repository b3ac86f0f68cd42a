"""Images with an ordered attribute, and the pairs and targets that a ranker learns from (P3 3.2, 5.2.1, 5.3.1).

This file has scikit-learn's handwritten digits, which are always available, and torchvision's MNIST; `folders.py` reads
the user's own images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
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
]


def metric_target(first: Tensor, second: Tensor, low: float, high: float) -> Tensor:
    """The ranking by a metric, in [0, 1] (P3 equations 15, 32, 37): (v_A - v_B) / (2 * (high - low)) + 1/2."""
    return (first - second) / (2 * (high - low)) + 0.5


def binary_target(first: Tensor, second: Tensor) -> Tensor:
    """1 if A ranks above B, and 0 if B ranks above A (P3 equation 13); a tie counts as A above B (section 3.2)."""
    return (first >= second).to(torch.get_default_dtype())


@dataclass(frozen=True)
class RankedImages:
    """Images of one size, and the attribute that orders them.

    Attributes:
        images: (N, C, H, W), uint8, or floating in [0, 1].
        values: (N,) float32, the attribute of each image, on the device of `images`.
        low, high: the range of the attribute, by which targets are normalised; images need not attain it.
        attribute: the name of `values`, for captions.
        skipped: names of files that could not be read.
        names: the names of the images' files, if they are from files.
        digests: of the images' contents (of the files, if they are from files), by which a split is recognised.
        shuffled: None, or (rounds, N) int64 from `with_shuffled_targets`.
    """

    images: Tensor
    values: Tensor
    low: float
    high: float
    attribute: str = "value"
    skipped: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    shuffled: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or len(self.images) < 1:
            raise ValueError(f"RankedImages: images must have shape (N, C, H, W) (got {tuple(self.images.shape)})")
        if tuple(self.values.shape) != (len(self.images),):
            raise ValueError(
                f"RankedImages: values must have shape ({len(self.images)},), one for each image "
                f"(got {tuple(self.values.shape)})"
            )
        for name in ("names", "digests"):
            if len(getattr(self, name)) not in (0, len(self.images)):
                raise ValueError(
                    f"RankedImages: {name} must be {len(self.images)}, one for each image, or none "
                    f"(got {len(getattr(self, name))})"
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
        """The same on another device. On the ranker's device, images need not be copied for each step."""
        return replace(self, images=self.images.to(device), values=self.values.to(device))

    def batch(self, index: Tensor | slice) -> Tensor:
        """The images at `index` as floating point in [0, 1]."""
        images = self.images[index]
        return images if images.is_floating_point() else images.to(torch.get_default_dtype()) / 255

    def target(self, first: Tensor, second: Tensor) -> Tensor:
        """The metric target of the pairs (first[i], second[i]) of image indices."""
        if self.shuffled is not None:
            for step in self.shuffled.to(first.device):  # a Feistel network, which permutes the pairs of indices
                first, second = second, (first + step[second]) % len(self)
        first, second = first.to(self.values.device), second.to(self.values.device)
        return metric_target(self.values[first], self.values[second], self.low, self.high)

    def draw_pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Indices of `count` random pairs of two different images (P3: "we randomly pick two items"), with replacement
        of the pairs."""
        if len(self) < 2:
            raise ValueError(f"draw_pairs: there must be at least two images (got {len(self)})")
        first = torch.randint(len(self), (count,), device=generator.device, generator=generator)
        further = torch.randint(1, len(self), (count,), device=generator.device, generator=generator)
        return first, (first + further) % len(self)

    def subset(self, index: Tensor) -> RankedImages:
        """The images at these indices, with their names and digests."""
        if self.shuffled is not None:
            raise ValueError("subset: images must not have shuffled targets, which belong to all of them (got some)")
        chosen = index.tolist()
        names, digests = (tuple(of[i] for i in chosen) if of else () for of in (self.names, self.digests))
        at = index.to(self.images.device)
        return replace(self, images=self.images[at], values=self.values[at], names=names, digests=digests)

    def split(self, held_out: float, generator: torch.Generator) -> tuple[RankedImages, RankedImages]:
        """A random part for training, and the fraction `held_out` for evaluation.

        If there are digests, images with the same content are in the same part.
        """
        if not 0 < held_out < 1:
            raise ValueError(f"split: held_out must lie between 0 and 1 (got {held_out})")
        if len(self) < 2:
            raise ValueError(f"split: there must be at least two images (got {len(self)})")
        order = torch.randperm(len(self), device=generator.device, generator=generator)
        cut = len(self) - max(1, round(len(self) * held_out))
        learns = torch.zeros(len(self), dtype=torch.bool, device=order.device)
        learns[order[:cut]] = True
        if self.digests:
            leader: dict[str, int] = {}  # of each digest, the first image
            of = [leader.setdefault(digest, i) for i, digest in enumerate(self.digests)]
            learns = learns[torch.tensor(of, device=order.device)]
            if bool(learns.all()) or not bool(learns.any()):
                raise ValueError(f"split: more images must differ (got {len(leader)} different ones among {len(of)})")
        return self.subset(order[learns[order]]), self.subset(order[~learns[order]])

    def without(self, learnt: Iterable[str]) -> RankedImages:
        """The images that are not among these names and digests, so that a ranker has not learnt from them.

        A file is recognised by its content even if it was renamed, and by its name even if it was encoded again.
        """
        known = set(learnt)
        seen = torch.tensor([key in known for key in self.keys()]).view(-1, len(self)).any(dim=0)
        if bool(seen.all()):
            raise ValueError("held out: the ranker must not have learnt from every image there is (got no other image)")
        return self.subset((~seen).nonzero()[:, 0])

    def keys(self) -> tuple[str, ...]:
        """The digests of all images, followed by their names if they have names, as `without` takes them."""
        return (self.digests or _digests(self.images.cpu())) + tuple(f"name {name}" for name in self.names)

    def with_shuffled_targets(self, generator: torch.Generator) -> RankedImages:
        """The same images with the targets of their ordered pairs permuted: P3's label randomisation.

        "The target normalized age gap values are randomized" (section 5.3.9). It is one random permutation of all N * N
        pairs, so targets keep their distribution and a pair has the same target at every visit, but no attribute of the
        images explains the targets.
        """
        return replace(self, shuffled=torch.randint(len(self), (6, len(self)), generator=generator, device="cpu"))

    def with_shuffled_values(self, generator: torch.Generator) -> RankedImages:
        """The same images with their attributes permuted: a second kind of label randomisation.

        It leaves an order, which can be learnt by heart.
        """
        order = torch.randperm(len(self), device=generator.device, generator=generator)
        return replace(self, values=self.values[order.to(self.values.device)])


class PairDataset(Dataset[tuple[Tensor, Tensor, Tensor]]):
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
        self.targets = source.target(self.first, self.second)
        if target is not None:
            self.targets = target(source.values[self.first], source.values[self.second])

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
    """scikit-learn's 1797 handwritten digits, white on black in [0, 1], resized bilinearly to `pixels` pixels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).to(torch.float32)[:, None] / 16
    digests = _digests(images)
    images = interpolate(images, size=(pixels, pixels), mode="bilinear", align_corners=False)
    values = torch.from_numpy(data.target).to(torch.float32)
    return RankedImages(images, values, 0, 9, "digit", digests=digests)


def mnist(folder: str | Path, train: bool = True) -> RankedImages:
    """Torchvision's MNIST in `folder`, which is not downloaded: 28 pixels, white on black (P3 equation 32)."""
    from torchvision.datasets import MNIST

    try:
        data = MNIST(str(folder), train=train, download=False)
    except RuntimeError as error:
        raise ValueError(f"mnist: folder must hold torchvision's MNIST (got {folder}: {error})") from error
    values = data.targets.to(torch.float32)
    return RankedImages(data.data[:, None], values, 0, 9, "digit", digests=_digests(data.data))


def _digests(images: Tensor) -> tuple[str, ...]:
    return tuple(hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest() for image in images.contiguous().numpy())
