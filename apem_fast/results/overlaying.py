"""Relevance maps laid over their images, as one picture to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from apem_fast.callers import said_by, sentence
from apem_fast.extras import extra
from apem_fast.files.pictures import colour_scale

if TYPE_CHECKING:
    from PIL import Image

GAP = 4  # pixels between pictures
_NEARLY = 1e-3  # how far rounding may carry values outside [0, 1]


@said_by("overlay")
def overlay(relevance: Tensor | Mapping[str, Tensor], pixels: Tensor, *, opacity: float = 0.6) -> Image.Image:
    """Relevance maps laid over their images: one picture, in which each row has an image and the image with its map.

    A notebook shows it as it is; `.save("maps.png")` writes it. Under the map the photograph is grey, so that all
    colour is the map's: from black for 0 through red to bright yellow for 1.

    Args:
        relevance: (N, 1, H, W) or (N, C, H, W) in [0, 1], as `relevance_map` makes it, or (N, H, W), or one map (H, W).
            Channels are averaged; a map whose size is not that of the pixels is resized bilinearly. A dictionary of
            several such sets gets one column for each, in order.
        pixels: the images as a person sees them, (N, 3, H, W) or (N, 1, H, W) in [0, 1], before any normalisation; or
            one image without the first dimension.
        opacity: of the map, in [0, 1].

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
        MissingExtra: matplotlib, which has the colours, or Pillow is not installed.
    """
    with extra("experiment", "overlay"):
        from PIL import Image

    if not (isinstance(opacity, int | float) and 0 <= opacity <= 1):
        raise ValueError(sentence(f"opacity must lie in [0, 1] (got {opacity})"))
    images = _pixels(pixels)
    sets = relevance.values() if isinstance(relevance, Mapping) else [relevance]
    columns = [images, *(_laid_over(_maps(one, len(images)), images, opacity) for one in sets)]
    rows = [torch.cat([_framed(picture) for picture in row], dim=2) for row in zip(*columns)]
    sheet = torch.cat(rows, dim=1)[:, GAP:, GAP:]
    return Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).contiguous().numpy())


def _laid_over(maps: Tensor, images: Tensor, opacity: float) -> Tensor:
    """(N, 3, H, W): the maps in colour over the images in grey."""
    if maps.shape[2:] != images.shape[2:]:
        maps = interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
    colours = torch.from_numpy(colour_scale())[(maps[:, 0] * 255).round().long()].permute(0, 3, 1, 2) / 255
    return opacity * colours + (1 - opacity) * images.mean(dim=1, keepdim=True)


def _pixels(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) float32 in [0, 1], on the CPU."""
    values = _numbers("pixels", pixels)
    values = values[None] if values.dim() == 3 else values
    if values.dim() != 4 or values.shape[1] not in (1, 3) or not values.numel():
        raise ValueError(sentence(f"pixels must have shape (N, 3, H, W) or (N, 1, H, W) (got {tuple(pixels.shape)})"))
    return _in_range("pixels", values, "images as they were before normalisation").expand(-1, 3, -1, -1)


def _maps(relevance: Tensor, images: int) -> Tensor:
    """(N, 1, h, w) float32 in [0, 1], on the CPU."""
    values = _numbers("relevance", relevance)
    values = values[None, None] if values.dim() == 2 else values
    if values.dim() == 3:  # maps of all images, or one map with its channels
        values = values[None] if images == 1 and len(values) != 1 else values[:, None]
    if values.dim() != 4 or len(values) != images or not values.numel():
        raise ValueError(
            sentence(f"relevance must have one map for each of {images} images (got {tuple(relevance.shape)})")
        )
    return _in_range("relevance", values, "relevance_map makes such of an attribution").mean(dim=1, keepdim=True)


def _numbers(name: str, values: object) -> Tensor:
    values = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if not isinstance(values, Tensor) or not values.is_floating_point():
        came = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(sentence(f"{name} must be a floating-point tensor (got {came})"))
    return values.detach().cpu().float()


def _in_range(name: str, values: Tensor, hint: str) -> Tensor:
    low, high = float(values.min()), float(values.max())
    if not -_NEARLY <= low <= high <= 1 + _NEARLY:  # NaN as well
        raise ValueError(sentence(f"{name} must lie in [0, 1]: {hint} (got {low:.3g} to {high:.3g})"))
    return values.clamp(0, 1)


def _framed(picture: Tensor) -> Tensor:
    """With a white edge above and to the left."""
    return torch.nn.functional.pad(picture, (GAP, 0, GAP, 0), value=1.0)
