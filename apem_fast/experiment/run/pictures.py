"""Photographs and relevance maps as small pictures within a page."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from apem_fast.files.pictures import colour_scale, data_uri


def coloured(picture: Image.Image) -> Image.Image:
    """A grey map in a perceptually uniform colour scale; any other picture unchanged."""
    if picture.mode != "L":
        return picture.convert("RGB")
    return Image.fromarray(colour_scale()[np.asarray(picture)])


def kept_picture(path: Path) -> Image.Image:
    """A picture that a run or the filter wrote, with every checksum of the file checked, which Pillow does not do.

    Raises:
        ValueError: it is not what was written.
    """
    try:
        contents = path.read_bytes()
        with Image.open(io.BytesIO(contents)) as picture:
            picture.verify()
        with Image.open(io.BytesIO(contents)) as picture:
            picture.load()
            return picture
    except Exception as error:  # noqa: BLE001 - what decoders raise at damaged files
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ValueError(f"{path} is damaged ({reason}); remove it to go on without it") from None


def small_map(picture: Image.Image, side: int) -> str:
    """A relevance map, at most `side` pixels wide and high, coloured, as a WebP data URI.

    It is made small before it is coloured: that shows the colour of a mean, and is faster.
    """
    return small_picture(coloured(_at_most(picture, side)), side)


def _at_most(picture: Image.Image, side: int) -> Image.Image:
    if max(picture.size) <= side:
        return picture
    picture = picture.copy()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def small_picture(picture: Image.Image, side: int, quality: int = 72) -> str:
    """The picture, at most `side` pixels wide and high, as a WebP data URI."""
    picture = _at_most(picture, side)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=6)
    return data_uri(buffer.getvalue(), "webp")
