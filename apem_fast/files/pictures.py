"""Pictures inside a page: tensors as PNG files, files as data URIs, matplotlib's figures as SVG."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from apem_fast.extras import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@cache
def colour_scale() -> NDArray[np.uint8]:
    """(256, 3): the colour of each grey level of a map, in a scale that is even to the eye and safe in print."""
    with extra("experiment", "a coloured map"):
        from matplotlib import colormaps

    return (colormaps["magma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def png_of(values: Tensor) -> bytes:
    """Values in [0, 1], (1, H, W) or (3, H, W), as a grey or colour PNG of 8 bits."""
    from PIL import Image

    levels = (values.detach().double().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(file: bytes, kind: str) -> str:
    """A picture's file, "png" or "webp", as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode('ascii')}"


def svg_of(figure: Figure, **how: Any) -> str:
    """A figure as the element of a page, with no date in it; `how` goes to matplotlib's `savefig`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}, **how)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
