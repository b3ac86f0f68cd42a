"""Photographs to evaluate: a record for one of any origin, and the real ones that ship with installed packages."""

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
        categories: the network's category names that a person would accept, the best first; empty if it has none.
        classes: the network's classes by index, where they are known so, in place of `categories`.
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
        """Different for other contents of the file; "" where it cannot be read."""
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
            most_pixels()  # which tells Pillow of it
            with Image.open(self.path) as file:
                require_size(file)
                picture = _eight_bits(file).convert("RGB")
        except UnidentifiedImageError:
            raise OSError("not an image that can be read") from None
        except (SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError) as error:
            raise OSError(str(error)) from None  # what decoders raise at damaged files
        return picture.crop(self.box) if self.box else picture

    def dropped(self) -> str:
        """What of the file `open` does not show, in words: pixels that are transparent, further frames; else empty."""
        with Image.open(self.path) as file:
            may_be = "transparency" in file.info or "A" in file.getbands()
            transparent = may_be and bool(np.asarray(file.convert("RGBA"))[..., 3].min() < 255)
            try:
                frames = getattr(file, "n_frames", 1)
            except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error):
                frames = 2  # there is something behind the first frame, and it is damaged
        words = [TRANSPARENT] if transparent else []
        return ", ".join(words + ([FRAMES] if frames > 1 else []))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of one channel with more than eight bits, scaled; Pillow would clip it to white.

    Raises:
        ValueError: values whose scale is not known.
    """
    if picture.mode[0] not in "IF":
        return picture
    values = np.asarray(picture).astype(np.float64)
    greatest = 1.0 if picture.mode == "F" else 65535.0  # files say no more: 16 bits, or a share of white
    if values.size and not (values.min() >= 0 and values.max() <= greatest):
        raise ValueError(f"grey values in 0...{greatest:g} were expected (got {values.min():g} to {values.max():g})")
    return Image.fromarray(np.rint(values * (255 / greatest)).astype(np.uint8))


def bundled_photographs() -> tuple[Photograph, ...]:
    """Fourteen photographs and crops that scikit-image, scikit-learn and matplotlib ship, grey and colour, easy and
    hard: a few show things that ImageNet's categories do not name.

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
