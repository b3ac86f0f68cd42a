"""Pictures inside a page: tensors as PNG files, files as data URIs, matplotlib figures as SVG."""

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
    """The colour of each of 256 levels, (256, 3), in a perceptually uniform scale that also prints well in grey."""
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
    """The content of a picture file, of the kind "png" or "webp", as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode('ascii')}"


def svg_of(figure: Figure, **how: Any) -> str:
    """A figure as an SVG element for a page, without a date; `how` is passed to matplotlib's `savefig`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}, **how)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
