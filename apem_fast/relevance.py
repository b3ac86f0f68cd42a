"""Relevance maps in [0, 1] made of attributions, at the papers' three stages; irrelevance; shuffled maps."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from apem_fast import ops
from apem_fast.callers import said_by
from apem_fast.papers import PERCENTILE
from apem_fast.seeding import generator_for
from apem_fast.validation import LOOKS_LIKE_BYTES, number
from apem_fast.validation.ways_out import of_no_tensor


def relevance_map(
    attribution: Tensor,
    images: Tensor | None = None,
    percentile: float | None = PERCENTILE,
    channels: Literal["sum", "keep"] = "sum",
) -> Tensor:
    """Makes an attribution into a relevance map in [0, 1] (P1 section IV-A, P2 section 4.2).

    The absolute values are clipped at a percentile of each image's own values, multiplied by the pixels if `images` are
    given, summed over the channels if `channels="sum"`, and rescaled so that each map reaches from 0 to 1. A constant
    map becomes 0 if it was 0, and 0.5 otherwise. If fewer than 1 value in 100 is not 0 (with the default percentile),
    the percentile is 0 and the clip sets the whole map to 0; a warning says so. `percentile=None` keeps so sparse a
    map.

    Args:
        attribution: (N, C, H, W), (N, 1, H, W) or (N, H, W), signed, any scale, any floating dtype.
        images: pixels to multiply by, before normalisation, best in [0, 1]: (N, C, H, W) or (N, 1, H, W); None does not
            multiply.
        percentile: in [0, 100], over all values of an image, interpolated as by `numpy.percentile`; None does not clip.
        channels: "sum" for a map (N, 1, H, W), "keep" for (N, C, H, W).

    Returns:
        The relevance, of the attribution's dtype and device.

    Raises:
        TypeError: a tensor of the wrong type or dtype.
        ValueError: a wrong shape or option, NaN or infinity.

    `torch.compile(relevance_map, fullgraph=True)` works, but cannot check values: with NaN or infinity the map is NaN.
    """
    if not isinstance(attribution, Tensor):
        way_out = of_no_tensor("attribution", attribution)
        raise TypeError(f"relevance_map: attribution must be a tensor (got {type(attribution).__name__}){way_out}")
    if attribution.dim() == 3:
        attribution = attribution[:, None]
    for name, values in (("attribution", attribution), ("images", images)):
        if values is None:
            continue
        if not isinstance(values, Tensor) or not values.is_floating_point():
            came = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"relevance_map: {name} must be a floating-point tensor (got {came})")
    if torch.compiler.is_compiling():
        return _in_a_graph(attribution, images, percentile, channels)
    with said_by("relevance_map"):
        percentile = None if percentile is None else number("percentile", percentile)
    if not isinstance(channels, str):
        raise TypeError(f'relevance_map: channels must be "sum" or "keep" (got {type(channels).__name__})')
    _look_at_values(attribution, images, percentile)
    images = None if images is None else images.to(attribution.dtype)
    try:
        relevance = ops.relevance_map(attribution, images, percentile, channels)
    except RuntimeError as error:
        if str(error).startswith("relevance_map: "):
            raise ValueError(str(error).splitlines()[0]) from None
        raise
    emptied = emptied_by_clip(attribution, relevance, percentile).nonzero()
    if len(emptied):
        index = int(emptied[0])
        warnings.warn(
            f"relevance_map: percentile={percentile:g} clips the attribution at index {index} to 0 throughout, since "
            f"only {_share_of_nonzero(attribution[index]):.2g} of its values are not 0; percentile=None does not clip "
            f"it (maps emptied: {len(emptied)} of {len(relevance)})",
            UserWarning,
            stacklevel=2,
        )
    return relevance


def emptied_by_clip(attribution: Tensor, relevance: Tensor, percentile: float | None) -> Tensor:
    """Which maps the clip set to 0 throughout although their attributions are not: (N,) bool.

    Args:
        attribution: (N, C, H, W).
        relevance: what `relevance_map` made of it, (N, 1 or C, H, W).
        percentile: the one it was made with.
    """
    emptied = torch.zeros(len(relevance), dtype=torch.bool, device="cpu")
    if percentile is None or not relevance.numel():
        return emptied
    for index in (relevance.detach().flatten(1) == 0).all(dim=1).nonzero().flatten().tolist():
        values = np.abs(attribution[index].detach().double().cpu().numpy())
        emptied[index] = bool(values.any()) and float(np.percentile(values, percentile)) == 0
    return emptied


def _share_of_nonzero(values: Tensor) -> float:
    return float(values.count_nonzero()) / values.numel()


def _in_a_graph(
    attribution: Tensor, images: Tensor | None, percentile: float | None, channels: Literal["sum", "keep"]
) -> Tensor:
    """The map as a graph computes it. A graph cannot branch on values, so NaN or infinity gives a map of NaN."""
    attribution = torch.where(attribution.isfinite(), attribution, torch.nan)
    if images is not None:
        images = torch.where(images.isfinite(), images, torch.nan).to(attribution.dtype)
    return ops.relevance_map(attribution, images, percentile, channels)


def _look_at_values(attribution: Tensor, images: Tensor | None, percentile: float | None) -> None:
    for name, values in (("attribution", attribution), ("images", images)):
        if values is not None and not values.isfinite().all():
            raise ValueError(f"relevance_map: {name} must be finite (got NaN or infinity)")
    if percentile is not None and 0 < percentile < 1:
        warnings.warn(
            f"relevance_map: percentile lies in [0, 100], and {percentile:g} clips nearly everything "
            "(the papers take 99)",
            UserWarning,
            stacklevel=3,
        )
    greatest = float(images.detach().amax()) if images is not None and images.numel() else 0.0
    if greatest > LOOKS_LIKE_BYTES:
        warnings.warn(
            f"relevance_map: images should be pixels in [0, 1] (got up to {greatest:g}, which looks like 0...255)",
            UserWarning,
            stacklevel=3,
        )


def irrelevance(relevance: Tensor) -> Tensor:
    """1 - R (P1 section III-A)."""
    return 1 - relevance


def shuffled(relevance: Tensor, seed: int = 0, shuffle: int = 0) -> Tensor:
    """Each map's values in random order: the same distribution without the explanation (P2 section 5.2).

    The order is drawn from a generator seeded with the map itself, `seed` and `shuffle`, so it does not depend on the
    other maps of a batch.

    Args:
        relevance: (N, 1, H, W) or (N, C, H, W).
        seed: any integer.
        shuffle: which of several shuffles of the same map.
    """
    maps = []
    for values in relevance:
        order = torch.randperm(values.numel(), device="cpu", generator=generator_for(values, seed, shuffle))
        maps.append(values.flatten()[order.to(values.device)].view(values.shape))
    return torch.stack(maps) if maps else relevance.clone()


LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and most libraries convert to grey


def greyscale(pixels: Tensor) -> Tensor:
    """The brightness of each pixel: (N, 3, H, W) -> (N, 1, H, W). Images of one channel are returned as they are."""
    if pixels.shape[1] != len(LUMA):
        return pixels
    return (pixels * torch.tensor(LUMA, dtype=torch.float32, device="cpu").view(-1, 1, 1).to(pixels)).sum(
        dim=1, keepdim=True
    )


@dataclass(frozen=True)
class Stage:
    """One stage of turning an attribution into a picture people can read (P1 section IV-C, P2 section 4.4).

    Each stage is easier to read than the one before and, as the papers found, less faithful to the model. All start
    with the clip at the 99th percentile. The third, "times-image", multiplies each colour's values by that colour's
    pixels and then sums (P1 section IV-A). P1 section IV-C multiplies the sum by the grey image instead: "times-grey".
    """

    name: str
    channels: Literal["sum", "keep"]
    times_image: bool
    title: str
    grey: bool = False

    def __call__(self, attribution: Tensor, pixels: Tensor, percentile: float | None = PERCENTILE) -> Tensor:
        """The relevance (N, 1 or C, H, W) in [0, 1] of an attribution (N, C, H, W) of images with these pixels.

        Args:
            attribution: (N, C, H, W).
            pixels: (N, C, H, W) or (N, 1, H, W) in [0, 1], before normalisation.
            percentile: see `relevance_map`.
        """
        if self.grey:
            pixels = greyscale(pixels)
        return relevance_map(attribution, pixels if self.times_image else None, percentile, self.channels)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("3-channel", "keep", False, "One value for each colour of each pixel"),
        Stage("1-channel", "sum", False, "Colours summed: one value for each pixel"),
        Stage("times-grey", "sum", True, "Colours summed, multiplied by the grey photograph", grey=True),
        Stage("times-image", "sum", True, "Multiplied by the photograph, colours summed"),
    )
}
"""All stages by name, in the order of pages and tables."""

USUAL_STAGES = ("3-channel", "1-channel", "times-image")
"""The three stages of the papers' tables, in their order."""
