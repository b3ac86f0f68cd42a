"""What replaces the removed features of an image: a constant, the image's own mean, or the blurred image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from apem_fast import validation
from apem_fast.callers import sentence

IMPUTATIONS = ("constant", "blur", "mean")

BLURRED_SIDE = 20  # the blur's standard deviation is this part of the shorter side: 11 pixels of 224
DEVIATIONS = 3  # the reach of the blur's kernel, in standard deviations


def filling_of(imputation: object, images: Tensor) -> Tensor:
    """The values that replace each feature of each image: (N, C, H, W).

    Args:
        imputation: "constant", 0 in the model's input space, which is the mean colour of normalised images; "mean", the
            mean of each channel of the image itself; "blur", the image blurred by a Gaussian with a standard deviation
            of a twentieth of the shorter side; a number; or a tensor that broadcasts to the images.
        images: (N, C, H, W).

    Raises:
        ValueError, TypeError: anything else.
    """
    if not isinstance(imputation, str):
        return checked_baseline(imputation, images, "imputation")
    images = images.detach()
    if imputation == "constant":
        return torch.zeros_like(images)
    if imputation == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    if imputation == "blur":
        return blurred(images, min(images.shape[2:]) / BLURRED_SIDE)
    raise ValueError(
        sentence(f"imputation must be {', '.join(IMPUTATIONS)}, a number or a torch.Tensor (got {imputation!r})")
    )


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Images (N, C, H, W) blurred by a Gaussian of this standard deviation in pixels; edges are continued outwards."""
    reach = max(1, round(DEVIATIONS * deviation))
    place = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu")
    weight = torch.exp(-0.5 * (place / deviation) ** 2)
    kernel = (weight / weight.sum()).to(images.dtype).to(images.device)
    channels = images.shape[1]
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        padded = functional.conv2d(padded, kernel.view(shape).repeat(channels, 1, 1, 1), groups=channels)
    return padded


def checked_baseline(baseline: object, images: Tensor, name: str = "baseline") -> Tensor:
    """A number or a tensor as (N, C, H, W), of the images' dtype."""
    baseline = validation.plain(baseline)
    if isinstance(baseline, bool) or not isinstance(baseline, (int, float, Tensor)):
        raise TypeError(sentence(f"{name} must be a number or a torch.Tensor (got {type(baseline).__name__})"))
    filling = torch.as_tensor(baseline, dtype=images.dtype, device=images.device).detach()
    if not bool(filling.isfinite().all()):
        raise ValueError(sentence(f"{name} must be finite (got NaN or infinity)"))
    try:
        return filling.expand_as(images)
    except RuntimeError:
        raise ValueError(
            sentence(f"{name} must broadcast to images {tuple(images.shape)} (got {tuple(filling.shape)})")
        ) from None
