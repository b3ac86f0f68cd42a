"""Explanations from a transformer's attention: attention rollout, and the relevance of Chefer et al."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apem_fast.explain import lrp_attention
from apem_fast.explain.explainer import Explainer, explainable_logits, require_batch_size
from apem_fast.explain.feature_maps import SOFTMAXES, Watch, is_over_tokens
from apem_fast.explain.grad_cam import enlarged
from apem_fast.explain.intercepted import require_visible, running_under
from apem_fast.validation import make_numbers_plain


class _OfAttention(Explainer):
    """The base of explanations by attention: how much of each image token reaches the tokens that the logits use.

    The logits use the tokens whose rows in the last attention have a gradient: the class token, or all tokens that are
    averaged.
    """

    usual_batch: ClassVar[Mapping[str, int]] = {"cpu": 4, "cuda": 16}  # the weights of every layer are kept
    batch_size: int | None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)

    @property
    def cost_per_image(self) -> float:
        return 3.0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        require_visible(model, self.name)
        inputs = images.detach().requires_grad_()
        watch = _Weights(inputs)
        with watch.over(model), running_under(watch):
            logits = explainable_logits(model, inputs, labels, self.name)
        weights = watch.weights
        tokens = self._tokens(weights, len(images))
        read = watch.reading(torch.Size((len(images), tokens, 1)))
        if read is None:
            raise ValueError(
                f"{self.name}: model must have its tokens on a grid that a convolution of it gave (got {tokens} tokens)"
            )
        logit = logits.gather(1, labels[:, None]).sum()
        gradients = [
            torch.zeros_like(one) if gradient is None else gradient
            for one, gradient in zip(weights, torch.autograd.grad(logit, weights, allow_unused=True))
        ]
        rows = (gradients[-1] != 0).any(dim=1).any(dim=2).to(images.dtype)  # (N, tokens)
        if not bool(rows.any(dim=1).all()):
            raise ValueError(f"{self.name}: model must have an attention whose weights reach the logits (got none)")
        mixed = self.mixed([one.detach() for one in weights], gradients)
        of_tokens = torch.einsum("nr,nrt->nt", rows / rows.sum(dim=1, keepdim=True), mixed)
        return enlarged(read(of_tokens[:, :, None]), images)

    @abstractmethod
    def mixed(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        """How much of each token is in each token after the last layer: (N, tokens, tokens).

        It is computed from every layer's attention weights, (N, heads, tokens, tokens), and from the gradients of the
        label's logit with respect to them.
        """

    def _tokens(self, weights: Sequence[Tensor], images: int) -> int:
        if not weights:
            raise ValueError(f"{self.name}: model must have attention (got a model without)")
        shapes = {(one.shape[0], one.shape[-2], one.shape[-1]) for one in weights}
        images_of, rows, columns = next(iter(shapes))
        if len(shapes) > 1 or images_of != images or rows != columns:
            raise ValueError(
                f"{self.name}: model must attend from all of an image's tokens to all of them in every layer, as a ViT "
                f"does (got attention of {len(shapes)} shapes, such as {rows} by {columns} for {images_of} pictures or "
                f"windows of {images} images)"
            )
        return rows


@dataclass(frozen=True)
class AttentionRollout(_OfAttention):
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928, section 3).

    It is the product over the layers of (A + I) / 2, with A the mean of a layer's attention weights over its heads. Its
    values are at least 0 and do not depend on the class.

    Args:
        batch_size: the most images in one batch; None for the usual number on that device.

    Raises:
        ValueError: on a call, for a model without attention, or with attention within windows or between scales.
    """

    name: ClassVar[str] = "Attention rollout"
    batch_size: int | None = None

    def mixed(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        rolled = torch.eye(weights[0].shape[-1]).to(weights[0])
        identity = rolled
        for one in weights:
            rolled = (one.mean(dim=1) + identity) / 2 @ rolled
        return rolled


@dataclass(frozen=True)
class AttentionRelevance(_OfAttention):
    """The attention relevance of Chefer, Gur and Wolf (2021, arXiv 2103.15679, equations 5 and 6).

    It starts with R = I. Each layer adds mean over the heads of max(A * dA, 0) times R, with A the layer's attention
    weights and dA the gradient of the label's logit with respect to them. Its values are at least 0.

    Args:
        batch_size: the most images in one batch; None for the usual number on that device.

    Raises:
        ValueError: on a call, for a model without attention, or with attention within windows or between scales.
    """

    name: ClassVar[str] = "Attention relevance"
    batch_size: int | None = None

    def mixed(self, weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
        relevance = torch.eye(weights[0].shape[-1]).to(weights[0]).expand(len(weights[0]), -1, -1)
        for one, gradient in zip(weights, gradients):
            relevance = relevance + (one * gradient).clamp(min=0).mean(dim=1) @ relevance
        return relevance


class _Weights(Watch):
    """Watches a forward pass and keeps every layer's attention weights.

    Fused attention is computed step by step instead, since it does not return its weights.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__(images)
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return lrp_attention.attention(*args, **{**kwargs, "mix": self._mix})
        if function is F.multi_head_attention_forward:
            result = lrp_attention.multi_head_attention(F.linear, *args, **{**kwargs, "mix": self._mix})
            return function(*args, **kwargs) if result is None else result
        result = super().__torch_function__(function, types, args, kwargs)
        if function in SOFTMAXES and result.dim() == 4 and is_over_tokens(result, *args[1:], **kwargs):
            self.weights.append(result)
        return result

    def _mix(self, weights: Tensor, values: Tensor) -> Tensor:
        self.weights.append(weights)
        return weights @ values
