"""Whether a model says the same of the same image twice: every measure here compares its answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apem_fast.running.clean import logits_of
from apem_fast.running.outputs import ModelOutputError
from apem_fast.running.undisturbed import undisturbed

ROUNDING = 2.0**-14  # of the greatest logit: sums in another order differ by far less, what is random by far more


def require_repeatable(model: nn.Module, images: Tensor) -> None:
    """Run the first image twice and compare.

    Raises:
        ModelOutputError: the answers differ by more than roundings, as with dropout left on.
    """
    image = images[:1].detach()
    with undisturbed(model, image), torch.no_grad():
        first, again = (logits_of(model, image.clone()).double() for _ in range(2))
        off = float((first - again).abs().max() / first.abs().max().clamp(min=torch.finfo(torch.float64).tiny))
    if off > ROUNDING or bool((first.isnan() != again.isnan()).any()):  # what is NaN both times is refused elsewhere
        raise ModelOutputError(
            f"model must answer the same image in the same way each time (its logits differ by {off:.2g} of the "
            "greatest between two runs; is dropout, or another random layer, still on?)"
        )
