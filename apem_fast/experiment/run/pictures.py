"""Photographs and relevance maps as PNG files, and as small pictures inside a page."""

from __future__ import annotations

import base64
import io
from functools import cache

import numpy as np
from PIL import Image
from torch import Tensor


def png_of(values: Tensor) -> bytes:
    """Values in [0, 1], (1, H, W) or (3, H, W), as a grey or colour PNG of 8 bits."""
    levels = (values.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def coloured(picture: Image.Image) -> Image.Image:
    """A grey map in a perceptually even colour scale; anything else as it is."""
    if picture.mode != "L":
        return picture.convert("RGB")
    return Image.fromarray(_colour_scale()[np.asarray(picture)])


@cache
def _colour_scale() -> np.ndarray:
    from matplotlib import colormaps

    return (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def data_uri(picture: Image.Image, side: int, quality: int = 72) -> str:
    """The picture, at most `side` pixels wide and high, as a WebP data URI."""
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
