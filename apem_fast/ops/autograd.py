"""Derivatives: each backward is an operator too. Operators without a derivative raise an error.

Forward mode (jvp, jacfwd) and the transforms of torch.func differentiate the reference definitions with torch: correct
to every order, at their speed. By itself torch would silently drop a forward derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from apem_fast.ops import load, reference

ops = torch.ops.apem_fast


def _no_derivative(operator: str) -> NotImplementedError:
    return NotImplementedError(
        f"{operator}: has no derivative; detach its inputs or use perturb and directed_relevance"
    )


def _refuse(operator: str) -> Callable[..., None]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise _no_derivative(operator)

    return backward


def _no_derivative_of_epsilon() -> NotImplementedError:
    return NotImplementedError("perturb: epsilon has no derivative here; pass epsilon.detach()")


def _save_directed_relevance(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    relevance, gradient, ctx.irrelevance = inputs
    ctx.save_for_backward(relevance, gradient)


def _directed_relevance_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    if not ctx.needs_input_grad[0]:
        return None, None, None
    relevance, gradient = ctx.saved_tensors
    return ops.directed_relevance_backward(grad, relevance, gradient, ctx.irrelevance), None, None


def _save_perturb(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, direction, epsilon, ctx.lower, ctx.upper = inputs
    if ctx.needs_input_grad[2]:
        raise _no_derivative_of_epsilon()
    ctx.save_for_backward(images, direction, epsilon)


def _perturb_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    grad_images, grad_direction = ops.perturb_backward(grad, *ctx.saved_tensors, ctx.lower, ctx.upper)
    return grad_images, grad_direction, None, None, None


def _save_label_margin(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _label_margin_backward(ctx: Any, grad_margin: Tensor | None, grad_predicted: Tensor | None) -> tuple[Any, ...]:
    if grad_margin is None:
        return None, None
    return ops.label_margin_backward(grad_margin, *ctx.saved_tensors), None


def _save_attack_penalty(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    perturbed, original, *ctx.forces = inputs
    ctx.save_for_backward(perturbed, original)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _attack_penalty_backward(ctx: Any, grad_penalty: Tensor | None, grad_terms: Tensor | None) -> tuple[Any, ...]:
    if grad_penalty is None:
        return None, None, None, None, None
    grad = ops.attack_penalty_backward(grad_penalty, *ctx.saved_tensors, *ctx.forces)
    # The penalty is a function of perturbed - original alone.
    return grad, -grad if ctx.needs_input_grad[1] else None, None, None, None


def _has_tangent(arguments: tuple[Any, ...]) -> bool:
    if forward_ad._current_level < 0:  # asked first: it is so but for forward mode, and no tensor has to be looked at
        return False
    return any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in arguments)


def _is_tracked(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


class _AllModes(torch.library.Library):
    """Registers a kernel with reverse-mode derivatives, and the reference for forward mode and torch.func."""

    differentiable: bool = True

    def impl(self, op_name: str, fn: Callable[..., Any], dispatch_key: str = "", **options: Any) -> None:
        name = op_name.rsplit("::", maxsplit=1)[-1]

        def kernel(keyset: Any, *arguments: Any) -> Any:
            transformed = torch._C._are_functorch_transforms_active() and _is_tracked(arguments)
            if not transformed and not _has_tangent(arguments):
                return fn(keyset, *arguments)
            if not self.differentiable:
                raise _no_derivative(name)
            return _by_definition(name, arguments)

        super().impl(op_name, kernel, dispatch_key, **options)


def _by_definition(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "perturb" and (_is_tracked(arguments[2:3]) or _has_tangent(arguments[2:3])):
        raise _no_derivative_of_epsilon()
    return getattr(reference, name)(*arguments)


_differentiable = _AllModes("apem_fast", "IMPL")
_other = _AllModes("apem_fast", "IMPL")
_other.differentiable = False

DIFFERENTIABLE: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "directed_relevance": (_directed_relevance_backward, _save_directed_relevance),
    "perturb": (_perturb_backward, _save_perturb),
    "label_margin": (_label_margin_backward, _save_label_margin),
    "attack_penalty": (_attack_penalty_backward, _save_attack_penalty),
}


def _refuse_at_the_call(operator: str) -> None:
    """For operators that write into an argument: torch registers no derivatives for them, not even a refusal."""
    overload = getattr(ops, operator).default

    def kernel(keyset: Any, *arguments: Any) -> None:
        if _is_tracked(arguments):
            raise _no_derivative(operator)
        with torch._C._AutoDispatchBelowAutograd():
            overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    _other.impl(operator, kernel, "Autograd", with_keyset=True)


for _name in load.OPERATORS:
    if _name in load.MUTATING:
        _refuse_at_the_call(_name)
    elif _name in DIFFERENTIABLE:
        _backward, _setup = DIFFERENTIABLE[_name]
        torch.library.register_autograd(f"apem_fast::{_name}", _backward, setup_context=_setup, lib=_differentiable)
    else:
        torch.library.register_autograd(f"apem_fast::{_name}", _refuse(_name), lib=_other)
