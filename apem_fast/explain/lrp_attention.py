"""The LRP rules for norms, attention, and products of two factors that depend on the image.

These are AttnLRP's rules (Achtibat et al. 2024, arXiv 2402.05602) for the multipliers of `lrp_rules`, R = x * m.

* Softmax: its Taylor expansion, R_i = x_i (R_s,i - s_i sum_j R_s,j). In multipliers that is the plain gradient.
* Products, matrix products among them: each factor gets one half, the plain gradient divided by two.
* Layer norm, group norm, RMS norm and the norm of a vector: the divisor counts as a constant, so that the rest is
  linear; the bias keeps its share.
* A gate is a sigmoid that another value is multiplied by, as in squeeze-and-excitation, or in a SiLU written out. It
  counts as a constant, so that the other value gets all relevance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Mix = Callable[[Tensor, Tensor], Tensor]


class Shared(torch.autograd.Function):
    """One of two factors, which gets half of the relevance."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor) -> Tensor:
        return factor.view_as(factor)

    @staticmethod
    def backward(ctx: Any, multiplier: Tensor) -> Tensor:
        return multiplier / 2


class Shifted(torch.autograd.Function):
    """y + b, where the bias b keeps its share m * b of the relevance."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor, keep: Callable[[Tensor], None]) -> Tensor:
        ctx.save_for_backward(bias)
        ctx.keep = keep
        return values + bias

    @staticmethod
    def backward(ctx: Any, multiplier: Tensor) -> tuple[Tensor, None, None]:
        (bias,) = ctx.saved_tensors
        ctx.keep(multiplier * bias)
        return multiplier, None, None


class Gate(torch.autograd.Function):
    """A sigmoid that another value is multiplied by. For any other use of it there is no rule."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, opened: Tensor, refuse: Callable[[], None]) -> Tensor:
        ctx.refuse = refuse
        return opened

    @staticmethod
    def backward(ctx: Any, multiplier: Tensor) -> tuple[Tensor, None, None]:
        ctx.refuse()
        return torch.zeros_like(multiplier), None, None


_VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Expand", "Unsqueeze", "Squeeze", "Permute", "Transpose", "Clone")


def is_gate(value: Tensor) -> bool:
    """Whether a value is the output of a sigmoid, possibly reshaped."""
    node = value.grad_fn
    while node is not None and node.name().rstrip("0123456789").removesuffix("Backward") in _VIEWS:
        node = node.next_functions[0][0]
    return node is not None and node.name() == "GateBackward"


def product(function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """A product of two values that both depend on the image."""
    if is_gate(second) and not is_gate(first):
        return function(first, second.detach())
    if is_gate(first) and not is_gate(second):
        return function(first.detach(), second)
    return function(Shared.apply(first), Shared.apply(second))


def standardised(
    inputs: Tensor,
    dims: tuple[int, ...],
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    keep: Callable[[Tensor], None],
    *,
    centred: bool = True,
) -> Tensor:
    """The value (x - mean) / deviation * weight + bias, with the deviation as a constant."""
    if centred:
        inputs = inputs - inputs.mean(dim=dims, keepdim=True)
    scale = (inputs.detach().square().mean(dim=dims, keepdim=True) + eps).rsqrt()
    values = inputs * scale
    if weight is not None:
        values = values * weight.detach()
    return values if bias is None else Shifted.apply(values, bias.detach(), keep)


def layer_norm(
    keep: Callable[[Tensor], None],
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return standardised(input, tuple(range(-len(normalized_shape), 0)), eps, weight, bias, keep)


def rms_norm(
    keep: Callable[[Tensor], None],
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return standardised(input, tuple(range(-len(normalized_shape), 0)), eps, weight, None, keep, centred=False)


def group_norm(
    keep: Callable[[Tensor], None],
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    values = standardised(grouped, (-1,), eps, None, None, keep).view(input.shape)
    per_channel = (-1,) + (1,) * (input.dim() - 2)
    if weight is not None:
        values = values * weight.detach().view(per_channel)
    return values if bias is None else Shifted.apply(values, bias.detach().view(per_channel), keep)


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    return input / input.detach().norm(p, dim, keepdim=True).clamp_min(eps)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    mix: Mix | None = None,
) -> Tensor:
    """The result of `F.scaled_dot_product_attention`, computed step by step.

    Args:
        mix: computes the output from the attention weights and the values, instead of the rule for products.
    """
    if dropout_p or enable_gqa:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = _scores(query, key.transpose(-2, -1), plain=mix is not None) * scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    weights = scores.softmax(dim=-1)
    return product(torch.matmul, weights, value) if mix is None else mix(weights, value)


def _scores(query: Tensor, key: Tensor, *, plain: bool) -> Tensor:
    return query @ key if plain else product(torch.matmul, query, key)


def multi_head_attention(
    linear: Linear,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    mix: Mix | None = None,
    **options: Any,
) -> tuple[Tensor, None] | None:
    """The result of `F.multi_head_attention_forward` for (tokens, N, width); None if its rarer options are used."""
    rare = (bias_k, bias_v, key_padding_mask, attn_mask)
    if any(one is not None for one in rare) or add_zero_attn or use_separate_proj_weight or query.dim() != 3:
        return None
    if in_proj_weight is None or options.get("is_causal") or (training and dropout_p):
        return None
    weights = in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    heads = [
        linear(tokens.transpose(0, 1), weight, bias).unflatten(2, (num_heads, -1)).transpose(1, 2)
        for tokens, weight, bias in zip((query, key, value), weights, biases)
    ]
    queries, keys, values = heads
    mixed = attention(queries, keys, values, mix=mix).transpose(1, 2).flatten(2)
    return linear(mixed, out_proj_weight, out_proj_bias).transpose(0, 1), None
