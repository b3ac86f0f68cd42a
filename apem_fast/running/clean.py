"""A model's predictions, margins and gradients for unperturbed images, each image alone.

They are computed alone because a batch sums in another order: with other images in the batch, a gradient near 0 could
have another sign, and the ray another direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apem_fast import ops
from apem_fast.running.batching import is_out_of_memory
from apem_fast.running.capture import Function, captured, warn_of_way_back
from apem_fast.running.fingerprint import Fingerprint
from apem_fast.running.outputs import ModelOutputError, logits_of

LANES = 4  # graphs of one image each that run side by side, since one image only fills a part of a GPU
IMAGES_A_LANE = 8  # the least number of images for which capturing a graph pays


def predictions_of(model: Callable[[Tensor], object], images: Tensor) -> Tensor:
    """(N,) int64: the classes of images, each alone.

    Raises:
        ModelOutputError: NaN or +infinity, whose index would be taken for the greatest logit's.
    """
    logits = torch.cat([logits_of(model, image.clone()) for image in images.split(1)])
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise ModelOutputError("model must not return NaN or +infinity (got such logits of an unperturbed image)")
    return logits.argmax(dim=1)


@dataclass(frozen=True)
class Clean:
    """The model's answers for N unperturbed images."""

    labels: Tensor  # (N,) int64: the predictions
    margin: NDArray[np.float64]  # (N,)
    logits: Tensor  # (N, classes), of the type in which they were computed
    sign: Tensor  # (N, C, H, W) int8: the sign gradient
    loss_gradient: Tensor  # (N, C, H, W) of the images' dtype, scaled: see `loss_gradient_at_logits`
    above: Tensor | None = None  # (N, classes) bool: the classes that a target of the user's is not above to begin with


def without(logits: Tensor, above: Tensor | None) -> Tensor:
    """Logits without the classes that are above a target."""
    return logits if above is None else logits.masked_fill(above, -torch.inf)


def above_target(logits: Tensor, targets: Tensor) -> Tensor:
    """The classes that each target is not above, itself left out: (N, classes) bool.

    Raises:
        ModelOutputError: a target that is no class, or that is above none.
    """
    wrong = targets[(targets < 0) | (targets >= logits.shape[1])]
    if len(wrong):
        raise ModelOutputError(f"target must lie in [0, {logits.shape[1]}), the model's classes (got {int(wrong[0])})")
    above = logits.detach() >= logits.detach().gather(1, targets[:, None])
    above = above.scatter(1, targets[:, None], False)
    if bool((above.sum(dim=1) == logits.shape[1] - 1).any()):
        raise ModelOutputError(
            "target must be above at least one other class in every image, or it has nothing to lose (got the last)"
        )
    return above


def loss_gradient_at_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the cross entropy of `labels` with respect to the logits, scaled to -1 at the label; float64.

    It is softmax - onehot, divided by 1 - p(label). That is the softmax over the *other* classes, which is computed
    without the cancellation that makes the gradient of a confident prediction vanish. The scale is positive, so it does
    not change the sign of the image's gradient.
    """
    others = logits.detach().to(torch.float64).scatter(1, labels[:, None], -torch.inf)
    return others.softmax(dim=1).scatter(1, labels[:, None], -1.0)


class Gradients:
    """One forward and one backward pass of an image: its logits (1, classes), and the gradient of the cross entropy of
    what it is predicted as with respect to the image (1, C, H, W), scaled."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        """Args:
        model: as the user has it, or a copy in another type.
        dtype: in which it computes; None for that of the images.
        """
        self._model, self._dtype = model, dtype

    def __call__(self, image: Tensor, target: Tensor | None = None) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            dtype = self._dtype or image.dtype
            leaf = image.detach().to(dtype, copy=True, memory_format=torch.contiguous_format).requires_grad_(True)
            logits = logits_of(self._model, leaf)
            if not logits.requires_grad:
                raise ModelOutputError(
                    "model must be differentiable with respect to images (got logits without a gradient, as of "
                    "quantised layers or a forward pass under no_grad)"
                )
            label = logits.detach().argmax(dim=1) if target is None else target
            others = without(logits, None if target is None else above_target(logits, target))
            (gradient,) = torch.autograd.grad(logits, leaf, loss_gradient_at_logits(others, label).to(logits.dtype))
        return logits.detach(), gradient

    def of_each(
        self, images: Tensor, take: Callable[[int, Tensor, Tensor], None], targets: Tensor | None = None
    ) -> None:
        """Calls `take(n, logits, gradient)` for the n-th of `images` (N, C, H, W)."""
        for n, image in enumerate(images.split(1)):
            take(n, *self(image, None if targets is None else targets[n : n + 1]))


class GraphedGradients(Gradients):
    """The same with CUDA graphs, a few of them side by side.

    Without graphs a GPU would wait for the host, which takes far longer to start the kernels of one image."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        super().__init__(model, dtype)
        self._lanes: list[tuple[torch.cuda.Stream, Function]] = []
        self._captured_for: tuple[object, ...] = ()
        self._given_up = False

    def of_each(
        self, images: Tensor, take: Callable[[int, Tensor, Tensor], None], targets: Tensor | None = None
    ) -> None:
        if targets is None:  # graphs are of predictions
            self._prepare(images)
        if not self._lanes or targets is not None:
            return super().of_each(images, take, targets)
        here = torch.cuda.current_stream(images.device)
        for stream, _ in self._lanes:
            stream.wait_stream(here)
        for n, (stream, replay) in zip(range(len(images)), cycle(self._lanes)):
            with torch.cuda.stream(stream):
                take(n, *replay(images[n : n + 1]))
        for stream, _ in self._lanes:
            here.wait_stream(stream)

    def _prepare(self, images: Tensor) -> None:
        """Captures enough lanes for this many images; captures anew if the model has changed."""
        captured_for = (images.shape[1:], images.dtype, images.device, Fingerprint(self._model))
        if captured_for != self._captured_for:
            self._lanes.clear()
            self._captured_for = captured_for
        wanted = 0 if self._given_up else min(LANES, len(images) // IMAGES_A_LANE)
        try:
            while len(self._lanes) < wanted:
                self._lanes.append(self._lane(images[:1]))
        except Exception as error:
            if isinstance(error, ModelOutputError) or is_out_of_memory(error):
                raise
            self._given_up = True
            self._lanes.clear()
            warn_of_way_back("capturing the gradient in a CUDA graph", error)

    def _lane(self, image: Tensor) -> tuple[torch.cuda.Stream, Function]:
        stream, static = torch.cuda.Stream(image.device), torch.zeros_like(image, memory_format=torch.contiguous_format)
        replay = captured(self, static, stream, torch.cuda.graph_pool_handle())
        for plain, prepared in zip(self(image), replay(image)):
            if not torch.equal(plain, prepared):
                raise RuntimeError("the graph's answer is not the model's to the bit")
        return stream, replay


def gradients_for(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> Gradients:
    """How to compute gradients of single images on that device; `dtype`: of the model, if not that of the images."""
    return GraphedGradients(model, dtype) if device.type == "cuda" else Gradients(model, dtype)


def run_clean(
    model: nn.Module, images: Tensor, gradients: Gradients | None = None, targets: Tensor | None = None
) -> Clean:
    """Labels, margins and sign gradients of `images` (N, C, H, W): one forward and one backward pass each (P1 eq. 1).

    Args:
        targets: (N,) int64, the classes to follow in place of the predictions.
    """
    gradients = gradients or Gradients(model)
    logits: list[Tensor] = [torch.empty(0)] * len(images)
    sign = torch.empty(images.shape, dtype=torch.int8, device=images.device)
    loss_gradient = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    finite = torch.ones(2, len(images), dtype=torch.bool, device=images.device)

    def take(n: int, answer: Tensor, gradient: Tensor) -> None:
        logits[n], loss_gradient[n], sign[n] = answer, gradient[0], gradient[0].sign()
        finite[0, n], finite[1, n] = answer.isfinite().all(), gradient.isfinite().all()

    gradients.of_each(images, take, targets)
    logits_are, gradients_are = finite.all(dim=1).tolist()  # read once: a GPU is not to wait after every image
    if not logits_are:
        raise ModelOutputError("model must return finite logits (got NaN or infinity for an unperturbed image)")
    if not gradients_are:
        raise ModelOutputError("model must have a finite gradient with respect to images (got NaN or infinity)")
    all_logits = torch.cat(logits)
    labels = all_logits.argmax(dim=1) if targets is None else targets
    above = None if targets is None else above_target(all_logits, targets)
    margin, _ = ops.label_margin(without(all_logits, above), labels)
    return Clean(labels, margin.double().cpu().numpy(), all_logits, sign, loss_gradient, above)
