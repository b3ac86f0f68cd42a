"""Photographs to evaluate: a record for any photograph, and those that come with installed packages."""

from __future__ import annotations

import hashlib
import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from apem_fast.files.picture_size import most_pixels, require_size

TRANSPARENT, FRAMES = "transparency dropped", "first frame alone"


@dataclass(frozen=True)
class Photograph:
    """One photograph, or a crop of one.

    Args:
        name: unique within a run; used in file names.
        subject: what a person would call it.
        categories: the names of the network's categories that a person would accept, the best first; may be empty.
        classes: the same as indices, instead of `categories`, if these are known.
        source: where it comes from.
        path: the image file.
        box: left, upper, right, lower in pixels of the file; None for the whole picture.
    """

    name: str
    subject: str
    categories: tuple[str, ...]
    source: str
    path: Path
    box: tuple[int, int, int, int] | None = None
    classes: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """A digest of the file's content; "" if it cannot be read."""
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
        except OSError:
            return ""

    def open(self) -> Image.Image:
        """The picture, RGB, cropped.

        Raises:
            OSError: the file is missing, damaged or not an image.
        """
        try:
            most_pixels()  # sets Pillow's limit too
            with Image.open(self.path) as file:
                require_size(file)
                picture = _eight_bits(file).convert("RGB")
        except UnidentifiedImageError:
            raise OSError("not an image that can be read") from None
        except (SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError) as error:
            raise OSError(str(error)) from None  # decoders raise several kinds of error for damaged files
        return picture.crop(self.box) if self.box else picture

    def dropped(self) -> str:
        """What `open` does not show of the file, in words: transparent pixels, later frames; empty if nothing."""
        with Image.open(self.path) as file:
            may_be = "transparency" in file.info or "A" in file.getbands()
            transparent = may_be and bool(np.asarray(file.convert("RGBA"))[..., 3].min() < 255)
            try:
                frames = getattr(file, "n_frames", 1)
            except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error):
                frames = 2  # something follows the first frame, and it is damaged
        words = [TRANSPARENT] if transparent else []
        return ", ".join(words + ([FRAMES] if frames > 1 else []))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of one channel with more than eight bits, scaled to eight; Pillow would clip it to white.

    Raises:
        ValueError: the scale of its values is not known.
    """
    if picture.mode[0] not in "IF":
        return picture
    values = np.asarray(picture).astype(np.float64)
    greatest = 1.0 if picture.mode == "F" else 65535.0  # a file does not say more: 16 bits, or a share of white
    if values.size and not (values.min() >= 0 and values.max() <= greatest):
        raise ValueError(f"grey values in 0...{greatest:g} were expected (got {values.min():g} to {values.max():g})")
    return Image.fromarray(np.rint(values * (255 / greatest)).astype(np.uint8))


def bundled_photographs() -> tuple[Photograph, ...]:
    """Fourteen photographs and crops that come with scikit-image, scikit-learn and matplotlib.

    They are grey and in colour, easy and hard; a few show things for which ImageNet has no category.

    Raises:
        FileNotFoundError: one of the packages is missing.
    """
    return tuple(
        Photograph(name, subject, categories, f"{source}, {file}", _folder(source) / file, box)
        for name, subject, categories, source, file, box in _BUNDLED
    )


_FOLDERS = {
    "scikit-image": ("skimage", "data"),
    "scikit-learn": ("sklearn", "datasets/images"),
    "matplotlib": ("matplotlib", "mpl-data/sample_data"),
}


def _folder(source: str) -> Path:
    package, folder = _FOLDERS[source]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"the bundled photographs need {source}: pip install {source}")
    return Path(found.origin).parent / folder


_CATS = ("tabby", "tiger cat", "Egyptian cat")
_MOTORCYCLES = ("moped", "motor scooter")
_ROCKETS = ("missile", "projectile")

# name, subject, categories, source, file, box
_BUNDLED = (
    ("cat", "cat", _CATS, "scikit-image", "chelsea.png", None),
    ("cat-nose", "cat, close up", _CATS, "scikit-image", "chelsea.png", (230, 100, 410, 280)),
    ("coffee", "espresso", ("espresso", "cup"), "scikit-image", "coffee.png", None),
    ("rocket", "rocket", _ROCKETS, "scikit-image", "rocket.jpg", (239, 43, 580, 384)),
    ("motorcycle", "motorcycle", _MOTORCYCLES, "scikit-image", "motorcycle_left.png", None),
    ("front-wheel", "motorcycle, front", _MOTORCYCLES, "scikit-image", "motorcycle_left.png", (412, 137, 637, 362)),
    ("astronaut", "astronaut", (), "scikit-image", "astronaut.png", None),
    ("helmet", "space helmet", ("crash helmet",), "scikit-image", "astronaut.png", (282, 282, 512, 512)),
    ("shuttle", "model of a space shuttle", ("space shuttle",), "scikit-image", "astronaut.png", (344, 86, 512, 254)),
    ("photographer", "man behind a tripod", ("tripod",), "scikit-image", "camera.png", None),
    ("palace", "palace", ("palace",), "scikit-learn", "china.jpg", (0, 86, 341, 427)),
    ("lake", "lake shore", ("lakeside",), "scikit-learn", "china.jpg", (384, 42, 640, 298)),
    ("flower", "flower", ("daisy",), "scikit-learn", "flower.jpg", (59, 64, 400, 405)),
    ("officer", "naval officer", ("military uniform",), "matplotlib", "grace_hopper.jpg", (0, 22, 512, 534)),
)
