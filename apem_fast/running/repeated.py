"""Whether a model says the same of an image each time, alone and beside others: every measure compares its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from apem_fast.running.outputs import ModelOutputError, logits_of
from apem_fast.running.undisturbed import undisturbed

ROUNDING = 2.0**-14  # of the greatest answer: sums in another order differ by far less, what is random by far more
COARSE_ROUNDING = 2.0**-7  # the same of models with layers in a low precision, between one batch and another


class Differs(NamedTuple):
    """Answers that are not of an input alone."""

    between: Literal["runs", "batches"]
    by: float  # the greatest difference, as a share of the greatest answer


def differing_answers(
    answer: Callable[..., Tensor], inputs: Sequence[Tensor], *, in_batches: bool = True
) -> Differs | None:
    """Runs one input alone and beside another, and compares.

    Args:
        answer: takes `inputs`, each (1, ...) of the first image, or pair of images, and gives its answer (1, ...).
        in_batches: whether more than one at a time is going to be run.
    """

    def alone() -> Tensor:
        return answer(*(one.clone() for one in inputs))

    first = alone()
    beside = [one.flip(tuple(range(2, one.dim()))) / 2 for one in inputs]
    together = None
    if in_batches:
        with suppress(RuntimeError, ValueError):  # of a model that takes one image at a time
            together = answer(*(torch.cat(both) for both in zip(inputs, beside)))
    if together is None:
        off = again = _difference(first, alone())
    else:
        off = _difference(torch.cat([first, answer(*beside)]), together)
        again = _difference(first, alone()) if off > ROUNDING else off
    if again > ROUNDING:
        return Differs("runs", again)
    return Differs("batches", off) if off > COARSE_ROUNDING else None


def require_repeatable(model: nn.Module, images: Tensor, *, in_batches: bool = True) -> None:
    """Whether the model answers the first image by itself, and each time alike.

    Raises:
        ModelOutputError: its answers differ by more than roundings, as with dropout left on, or with batch
            normalisation that keeps no running statistics.
    """
    image = images[:1].detach()
    with undisturbed(model, image), torch.no_grad():
        differs = differing_answers(lambda inputs: logits_of(model, inputs), [image], in_batches=in_batches)
    if differs is None:
        return
    if differs.between == "runs":
        raise ModelOutputError(
            f"model must answer the same image in the same way each time (its logits differ by {differs.by:.2g} of the "
            "greatest between two runs; is dropout, or another random layer, still on?)"
        )
    raise ModelOutputError(
        f"model must answer each image by itself (its logits differ by {differs.by:.2g} of the greatest when another "
        "image is in the batch, as with batch normalisation that keeps no running statistics); batch_size=1 runs "
        "one image at a time"
    )


def _difference(one: Tensor, other: Tensor) -> float:
    """The greatest, as a share of the greatest answer. What is NaN both times is refused elsewhere."""
    one, other = one.double(), other.double()
    if bool((one.isnan() != other.isnan()).any()):
        return float("inf")
    greatest = one.abs().nan_to_num().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((one - other).abs().nan_to_num().max() / greatest)
