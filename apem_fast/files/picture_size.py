"""The greatest size of a picture: even a small file can decode to one that fills the memory."""

from __future__ import annotations

import os

from PIL import Image

MOST_PIXELS = 2**26  # 8,192 x 8,192; a copy of it in float32 has 0.8 GB
VARIABLE = "APEM_FAST_MOST_PIXELS"


def require_size(picture: Image.Image) -> None:
    """Checks the size of a picture that is open but not decoded yet.

    Raises:
        ValueError: it has more pixels than MOST_PIXELS, or than the environment variable allows that raises the limit.
    """
    width, height = picture.size
    if width * height > most_pixels():
        raise ValueError(
            f"a picture must have at most {most_pixels():,} pixels (got {width:,} x {height:,}); the environment "
            f"variable {VARIABLE} raises this"
        )


def most_pixels() -> int:
    """The limit, in pixels. If the user has raised it, Pillow's own limit is raised with it."""
    given = os.environ.get(VARIABLE, "")
    if not given:
        return MOST_PIXELS
    if not given.isdecimal():
        raise ValueError(f"{VARIABLE} must be a number of pixels (got {given!r})")
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(given))
    return int(given)
