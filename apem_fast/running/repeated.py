"""Whether a model says the same of an image each time, alone and beside others: every measure compares its answers."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from apem_fast.running.outputs import ModelOutputError, logits_of
from apem_fast.running.undisturbed import undisturbed

ROUNDING = 2.0**-14  # of the greatest logit: sums in another order differ by far less, what is random by far more
COARSE_ROUNDING = 2.0**-7  # the same of models with layers in a low precision, between one batch and another


def require_repeatable(model: nn.Module, images: Tensor, *, in_batches: bool = True) -> None:
    """Run the first image alone and in a batch, and compare.

    Args:
        in_batches: whether more than one image at a time is going to be run.

    Raises:
        ModelOutputError: the answers differ by more than roundings, as with dropout left on, or with batch
            normalisation that keeps no running statistics.
    """
    image = images[:1].detach()
    beside = image.flip((2, 3)) / 2
    with undisturbed(model, image), torch.no_grad():
        alone = logits_of(model, image.clone())
        together = _together(model, image, beside) if in_batches else None
        if together is None:
            off = again = _difference(alone, logits_of(model, image.clone()))
        else:
            off = _difference(torch.cat([alone, logits_of(model, beside)]), together)
            again = _difference(alone, logits_of(model, image.clone())) if off > ROUNDING else off
    if again > ROUNDING:
        raise ModelOutputError(
            f"model must answer the same image in the same way each time (its logits differ by {again:.2g} of the "
            "greatest between two runs; is dropout, or another random layer, still on?)"
        )
    if off > COARSE_ROUNDING:
        raise ModelOutputError(
            f"model must answer each image by itself (its logits differ by {off:.2g} of the greatest when another "
            "image is in the batch, as with batch normalisation that keeps no running statistics); batch_size=1 runs "
            "one image at a time"
        )


def _together(model: nn.Module, image: Tensor, beside: Tensor) -> Tensor | None:
    """The logits of two images in one batch; None where the model takes one image at a time."""
    with suppress(RuntimeError, ValueError):
        return logits_of(model, torch.cat([image, beside]))
    return None


def _difference(one: Tensor, other: Tensor) -> float:
    """The greatest, as a share of the greatest logit. What is NaN both times is refused elsewhere."""
    one, other = one.double(), other.double()
    if bool((one.isnan() != other.isnan()).any()):
        return float("inf")
    greatest = one.abs().nan_to_num().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((one - other).abs().nan_to_num().max() / greatest)
