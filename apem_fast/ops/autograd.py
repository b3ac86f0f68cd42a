"""Derivatives: each backward is an operator too. Operators without a derivative say so instead of returning none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apem_fast.ops import load  # noqa: F401  (registers the operators)

ops = torch.ops.apem_fast


def _refuse(operator: str, *argument: str) -> Callable[..., None]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            f"{operator}: has no derivative; detach its inputs or use perturb and directed_relevance"
        )

    return backward


def _save_directed_relevance(ctx: Any, inputs: tuple, output: Tensor) -> None:
    relevance, gradient, ctx.irrelevance = inputs
    ctx.save_for_backward(relevance, gradient)


def _directed_relevance_backward(ctx: Any, grad: Tensor) -> tuple:
    if not ctx.needs_input_grad[0]:
        return None, None, None
    relevance, gradient = ctx.saved_tensors
    return ops.directed_relevance_backward(grad, relevance, gradient, ctx.irrelevance), None, None


def _save_perturb(ctx: Any, inputs: tuple, output: Tensor) -> None:
    images, direction, epsilon, ctx.lower, ctx.upper = inputs
    if ctx.needs_input_grad[2]:
        raise NotImplementedError("perturb: epsilon has no derivative here; pass epsilon.detach()")
    ctx.save_for_backward(images, direction, epsilon)


def _perturb_backward(ctx: Any, grad: Tensor) -> tuple:
    grad_images, grad_direction = ops.perturb_backward(grad, *ctx.saved_tensors, ctx.lower, ctx.upper)
    return grad_images, grad_direction, None, None, None


def _save_label_margin(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _label_margin_backward(ctx: Any, grad_margin: Tensor | None, grad_predicted: Tensor | None) -> tuple:
    if grad_margin is None:
        return None, None
    return ops.label_margin_backward(grad_margin, *ctx.saved_tensors), None


def _save_attack_penalty(ctx: Any, inputs: tuple, output: tuple) -> None:
    perturbed, original, *ctx.forces = inputs
    ctx.save_for_backward(perturbed, original)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _attack_penalty_backward(ctx: Any, grad_penalty: Tensor | None, grad_terms: Tensor | None) -> tuple:
    if grad_penalty is None:
        return None, None, None, None, None
    grad = ops.attack_penalty_backward(grad_penalty, *ctx.saved_tensors, *ctx.forces)
    # The penalty is a function of perturbed - original alone.
    return grad, -grad if ctx.needs_input_grad[1] else None, None, None, None


register = torch.library.register_autograd
register("apem_fast::directed_relevance", _directed_relevance_backward, setup_context=_save_directed_relevance)
register("apem_fast::perturb", _perturb_backward, setup_context=_save_perturb)
register("apem_fast::label_margin", _label_margin_backward, setup_context=_save_label_margin)
register("apem_fast::attack_penalty", _attack_penalty_backward, setup_context=_save_attack_penalty)
for _operator in ("perturb_probes", "relevance_map", "first_flip", "zero_levels", "attack_step", "saliency_map"):
    register(f"apem_fast::{_operator}", _refuse(_operator))
for _operator in (
    "directed_relevance_backward",
    "perturb_backward",
    "label_margin_backward",
    "attack_penalty_backward",
):
    register(f"apem_fast::{_operator}", _refuse(_operator))
