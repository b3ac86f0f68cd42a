"""Pictures of saliency maps: superimpositions and SLIC tessellations (P3 section 4.8).

The maps themselves, equations 28-29 and 31, are the operator `apem_fast.ops.saliency_map`.
"""

from __future__ import annotations

from typing import Literal

import numpy
import torch
from torch import Tensor

from apem_fast.ops import saliency_map
from apem_fast.validation import whole

__all__ = ["grey", "saliency_map", "superimpose", "superpixel_maximum", "superpixels", "tessellate"]

FLAVOURS = {"green on red": (1, 0), "red on blue": (0, 2)}  # channel of the saliency, channel of the image


def grey(images: Tensor) -> Tensor:
    """The mean of the channels, which is P3's greyscale (equation 30): (N, C, H, W) -> (N, 1, H, W)."""
    return images.mean(dim=1, keepdim=True)


def superimpose(
    images: Tensor, saliency: Tensor, flavour: Literal["green on red", "red on blue"] = "red on blue"
) -> Tensor:
    """The saliency in one colour channel over the grey image in another, for colour-blind readers (P3 equation 30).

    Args:
        images: (N, C, H, W) in [0, 1].
        saliency: (N, 1, H, W) in [0, 1].
        flavour: "green on red" or "red on blue": the saliency is green over a red image, or red over a blue one.

    Returns:
        (N, 3, H, W), RGB in [0, 1].
    """
    if flavour not in FLAVOURS:
        raise ValueError(f"superimpose: flavour must be one of {', '.join(FLAVOURS)} (got {flavour})")
    _require_map("superimpose", images, saliency)
    colours = torch.zeros((len(images), 3, *images.shape[2:]), dtype=images.dtype, device=images.device)
    of_saliency, of_image = FLAVOURS[flavour]
    colours[:, of_saliency] = saliency[:, 0]
    colours[:, of_image] = grey(images)[:, 0]
    return colours


def superpixels(images: Tensor, segments: int = 60, compactness: float = 10.0) -> Tensor:
    """SLIC super-pixels of each image by scikit-image, in CIELAB, as SLIC is defined and as MATLAB computes it for P3.

    The share of the colours' variance between super-pixels, with 60 of them, was 0.85 and 0.73 for two faces of 64
    pixels (in RGB with compactness 0.1: 0.82 and 0.60), 0.85 (0.85) for a coffee cup, 0.80 (0.78) for a rocket, 0.56
    (0.64) for a cat of one colour, and 0.86 to 0.95 (0.85 to 0.95) for digits.

    Args:
        images: (N, C, H, W) in [0, 1]; any other number of channels than 3 is made grey.
        segments: how many are asked for; SLIC returns about as many.
        compactness: SLIC's weight of distance against colour, for lightness in [0, 100]; 10 is SLIC's default.

    Returns:
        (N, H, W) int64 labels, from 0 without gaps, on the CPU.
    """
    from skimage.segmentation import slic

    segments = whole("segments", segments)
    colours = images.detach().cpu().double()
    if colours.shape[1] != 3:
        colours = grey(colours).expand(-1, 3, -1, -1)
    labels = []
    for image in colours.numpy():
        label = slic(
            image, n_segments=segments, compactness=compactness, start_label=0, channel_axis=0, convert2lab=True
        )
        labels.append(torch.from_numpy(numpy.unique(label, return_inverse=True)[1].reshape(label.shape)))
    return torch.stack(labels).to(torch.int64)


def superpixel_maximum(labels: Tensor, saliency: Tensor) -> list[Tensor]:
    """For each image, the greatest saliency of each of its super-pixels: (its super-pixels,).

    Args:
        labels: (N, H, W) int64 from 0, as `superpixels` gives.
        saliency: (N, 1, H, W).

    Returns:
        On the CPU, whatever the device of the arguments.
    """
    labels, values = labels.cpu(), saliency.detach().cpu()
    return [
        torch.zeros(int(label.max()) + 1, dtype=value.dtype, device="cpu").scatter_reduce(
            0, label.flatten(), value.flatten(), "amax", include_self=False
        )
        for label, value in zip(labels, values, strict=True)
    ]


def tessellate(images: Tensor, saliency: Tensor, segments: int = 60, opacity: float = 0.6) -> Tensor:
    """Super-pixels in the jet colour of their greatest saliency, over the grey image (P3 Figure 28).

    Args:
        images: (N, C, H, W) in [0, 1].
        saliency: (N, 1, H, W) in [0, 1].
        segments: how many super-pixels are asked for.
        opacity: of the colours, in [0, 1].

    Returns:
        (N, 3, H, W), RGB in [0, 1], on the CPU.
    """
    from matplotlib import colormaps

    _require_map("tessellate", images, saliency)
    labels = superpixels(images, segments)
    tiles = torch.stack(
        [maximum[label] for label, maximum in zip(labels, superpixel_maximum(labels, saliency), strict=True)]
    )
    colours = torch.from_numpy(colormaps["jet"](tiles.numpy())[..., :3]).permute(0, 3, 1, 2)
    return (opacity * colours + (1 - opacity) * grey(images).cpu()).to(images.dtype)


def _require_map(call: str, images: Tensor, saliency: Tensor) -> None:
    expected = (len(images), 1, *images.shape[2:])
    if images.dim() != 4 or tuple(saliency.shape) != expected:
        raise ValueError(f"{call}: saliency must have shape {expected} (got {tuple(saliency.shape)})")
