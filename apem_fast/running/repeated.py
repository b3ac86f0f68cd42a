"""Checks that a model gives the same answer for an image each time, alone and in a batch, as every measure requires."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from apem_fast.running.outputs import ModelOutputError, logits_of
from apem_fast.running.undisturbed import undisturbed

ROUNDING = 2.0**-14  # of the greatest answer: sums in another order differ by far less, what is random by far more


class Differs(NamedTuple):
    """The model's answers do not depend on one input alone."""

    between: Literal["runs", "batches"]
    by: float  # the greatest difference, as a share of the greatest answer


def differing_answers(
    answer: Callable[..., Tensor], inputs: Sequence[Tensor], *, in_batches: bool = True
) -> Differs | None:
    """Runs one input beside another and beside itself, and compares; of the latter also the two places. Both batches
    have one size, so that the same sums are formed in the same order: what differs is not rounding.

    Args:
        answer: takes `inputs`, each (1, ...) of the first image, or pair of images, and gives its answer (1, ...).
        in_batches: whether more than one at a time is going to be run; otherwise it is run twice alone.
    """

    def beside(others: Sequence[Tensor]) -> Tensor:
        return answer(*(torch.cat([other, one]) for other, one in zip(others, inputs)))

    def itself() -> Tensor:
        return beside(inputs) if together is not None else answer(*(one.clone() for one in inputs))

    together = None
    if in_batches:
        with suppress(RuntimeError, ValueError):  # of a model that takes one image at a time
            together = beside([one.flip(tuple(range(2, one.dim()))) / 2 for one in inputs])[1:]
    first = itself()
    if together is None:
        off = _difference(first, itself())
    else:
        off = max(_difference(first[1:], together), _difference(first[1:], first[:1]))
    if off <= ROUNDING:
        return None
    again = off if together is None else _difference(first, itself())
    return Differs("runs", again) if again > ROUNDING else Differs("batches", off)


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


_SEEN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models that were seen to repeat themselves, and whether in batches too."""


def require_repeatable_once(model: nn.Module, images: Tensor, *, in_batches: bool = True) -> None:
    """The same, but a model that passed is not looked at again: for calls that take hardly longer than this does."""
    seen = _SEEN.get(model)
    if seen is None or (in_batches and not seen):
        require_repeatable(model, images, in_batches=in_batches)
        _SEEN[model] = in_batches


def share_what_was_seen(one: nn.Module, other: nn.Module) -> None:
    """Of a model and its copy, what was seen of one holds for the other."""
    for model, copy in ((one, other), (other, one)):
        if model in _SEEN:
            _SEEN[copy] = _SEEN[model]


def _difference(one: Tensor, other: Tensor) -> float:
    """The greatest, as a share of the greatest answer. What is NaN both times is refused elsewhere."""
    one, other = one.double(), other.double()
    if bool((one.isnan() != other.isnan()).any()):
        return float("inf")
    greatest = torch.stack([one, other]).abs().nan_to_num().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((one - other).abs().nan_to_num().max() / greatest)
