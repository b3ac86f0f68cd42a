"""Guided Backpropagation: the gradient, with negative entries set to 0 at every ReLU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from apem_fast.explain.explainer import Explainer, explainable_logits, require_batch_size
from apem_fast.explain.intercepted import is_relu, nodes_behind, require_visible, running_under
from apem_fast.validation import make_numbers_plain


@dataclass(frozen=True)
class GuidedBackprop(Explainer):
    """The gradient of the label's logit with negative entries set to 0 at every ReLU (P1 section IV-A), signed.

    ReLUs are recognised by the functions that the model calls. So it does not matter whether it uses modules, `F.relu`,
    `torch.relu` or methods, in place or not, or one module in several places. ReLU6 and other ReLUs with a ceiling (a
    clamp with the minimum 0) count as ReLUs. The gradient passes other activations (leaky ReLU, GELU, SiLU, tanh, ...)
    unchanged. A model without any ReLU is refused, since the result would be the plain gradient.

    Args:
        batch_size: the most images in one batch; None for the usual number on that device.

    Raises:
        ValueError: on a call: the model has no ReLU, or has ReLUs in scripted code or other threads.
    """

    name: ClassVar[str] = "Guided Backpropagation"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)

    @property
    def cost_per_image(self) -> float:
        return 3.0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return guided_gradient(model, images, labels, self.name)


def guided_gradient(model: nn.Module, images: Tensor, labels: Tensor, name: str) -> Tensor:
    """The guided gradient of logit[label] with respect to the images, signed: (N, C, H, W)."""
    require_visible(model, name)
    guide = _GuidedReLUs()
    inputs = images.detach().requires_grad_()
    with running_under(guide):
        logits = explainable_logits(model, inputs, labels, name)
    if any(node.name().startswith("ReluBackward") for node in nodes_behind(logits)):
        raise ValueError(f"{name}: model must run its ReLUs as plain PyTorch in this thread (got one out of reach)")
    if guide.count == 0:
        raise ValueError(f"{name}: model must have ReLUs, or the result is the plain gradient (got a model without)")
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), inputs)
    return gradient


class _GuidedReLUs(TorchFunctionMode):
    """Replaces every ReLU that lies between the images and the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_relu(function, args, kwargs):
            return function(*args, **kwargs)
        rest = dict(kwargs)
        inputs = args[0] if args else rest.pop("input")
        if not inputs.requires_grad:
            return function(*args, **kwargs)
        self.count += 1
        scratch = inputs.detach().clone()
        rectified = _GuidedReLU.apply(inputs, function(scratch, *args[1:], **rest))
        in_place = scratch._version > 0
        return inputs.copy_(rectified) if in_place else rectified


class _GuidedReLU(torch.autograd.Function):
    """A ReLU whose backward pass keeps only positive entries of the gradient, where the unit is active.

    A unit is active if its input is above 0 and, if there is a ceiling, below it.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rectified: Tensor) -> Tensor:
        ctx.save_for_backward((rectified == inputs) & (rectified > 0))
        return rectified

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (active,) = ctx.saved_tensors
        return torch.where(active, gradient.clamp(min=0), 0.0), None
