"""Photographs and relevance maps as small pictures inside a page."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

from apem_fast.pictures import data_uri


def coloured(picture: Image.Image) -> Image.Image:
    """A grey map in a perceptually even colour scale; anything else as it is."""
    if picture.mode != "L":
        return picture.convert("RGB")
    return Image.fromarray(_colour_scale()[np.asarray(picture)])


@cache
def _colour_scale() -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def small_picture(picture: Image.Image, side: int, quality: int = 72) -> str:
    """The picture, at most `side` pixels wide and high, as a WebP data URI."""
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=6)
    return data_uri(buffer.getvalue(), "webp")
