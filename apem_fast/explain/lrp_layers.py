"""Chooses the LRP rule of each call in a forward pass, and reports calls without one.

* Convolutions and linear layers: the chosen rule. A batch norm is folded into the layer before it; without such a layer
  it is a scaling.
* Activations with f(0) = 0: relevance passes unchanged.
* Norms, attention and products: see `lrp_attention`.
* Additions, averages, maxima and reshaping: their plain gradient is the rule already (see `lrp_rules`).
* Everything else has no rule, and is reported with the modules that called it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from apem_fast.explain import lrp_attention
from apem_fast.explain.intercepted import CONVOLUTIONS, is_relu, nodes_behind
from apem_fast.explain.lrp_rules import LinearLayer, Rule

_ACTIVATIONS = frozenset(
    {
        F.leaky_relu,
        F.leaky_relu_,
        F.prelu,
        F.elu,
        F.elu_,
        F.selu,
        F.selu_,
        F.celu,
        F.celu_,
        F.gelu,
        F.silu,
        F.mish,
        F.hardswish,
        F.hardtanh,
        F.hardtanh_,
        F.softsign,
        F.tanh,
        torch.tanh,
        torch.tanh_,
        Tensor.tanh,
        Tensor.tanh_,
    }
)

_SIGMOIDS = frozenset({F.sigmoid, torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.hardsigmoid})
_NORMS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: lrp_attention.layer_norm,
    F.group_norm: lrp_attention.group_norm,
    F.rms_norm: lrp_attention.rms_norm,
}
_PRODUCTS: dict[Callable[..., Any], Callable[[Tensor, Tensor], Tensor]] = {
    **dict.fromkeys((torch.mul, torch.multiply, Tensor.mul, Tensor.multiply), torch.mul),
    **dict.fromkeys((Tensor.__mul__, Tensor.__rmul__), torch.mul),
    **dict.fromkeys((torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__), torch.matmul),
}
_PRODUCTS_IN_PLACE = frozenset({Tensor.mul_, Tensor.__imul__})

_OWN_NODES = frozenset(
    {"_LinearLayerBackward", "_ActivationBackward", "SharedBackward", "ShiftedBackward", "GateBackward"}
)
_PLAIN_NODES = frozenset(
    {
        "AccumulateGrad",
        "Add",
        "Sub",
        "Neg",
        "Mean",
        "Sum",
        "AvgPool1D",
        "AvgPool2D",
        "AvgPool3D",
        "AdaptiveAvgPool2D",
        "AdaptiveAvgPool3D",
        "MaxPool2DWithIndices",
        "MaxPool3DWithIndices",
        "AdaptiveMaxPool2D",
        "AdaptiveMaxPool3D",
        "Amax",
        "Max",
        "View",
        "UnsafeView",
        "ReshapeAlias",
        "AsStrided",
        "Alias",
        "Permute",
        "Transpose",
        "T",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Repeat",
        "Slice",
        "Select",
        "Index",
        "Split",
        "SplitWithSizes",
        "Unbind",
        "Cat",
        "Stack",
        "Clone",
        "ToCopy",
        "CopyBackwards",
        "ConstantPadNd",
        "UpsampleNearest2D",
        "UpsampleBilinear2D",
        "Softmax",
        "Roll",
        "Flip",
        "MaskedFill",
        "IndexSelect",
    }
)
_PLAIN_IF_CONSTANT = frozenset({"Mul", "Div"})  # if one factor does not depend on the image: a scaling


class _Kept:
    """The relevance that biases kept. It is apart from the rules to avoid a reference cycle with the autograd graph."""

    def __init__(self, images: int):
        self.of_images: list[Tensor] = []
        self._images = images

    def keep(self, relevance: Tensor) -> None:
        """Adds relevance (rows, ...). If an image has several rows, such as windows, they follow one another."""
        rows, images = len(relevance), self._images
        whole = relevance.reshape(images, -1).sum(dim=1) if rows % images == 0 else relevance.new_full((images,), NAN)
        self.of_images.append(whole)


NAN = float("nan")


class LayerRules(TorchFunctionMode):
    """Runs a model with every layer replaced by one whose backward pass is its rule; notes calls without a rule.

    Args:
        model: whose modules are named if they have no rule.
        images: the input, (N, C, H, W), a leaf of the autograd graph.
        rule: of the convolutions and linear layers.
    """

    def __init__(self, model: nn.Module, images: Tensor, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self._kept = _Kept(len(images))
        self.without_rule: dict[str, str] = {}
        self._paths = {id(module): path for path, module in getattr(model, "named_modules", tuple)()}
        self._image_node = torch.autograd.graph.get_gradient_edge(images).node
        self._seen: set[Node] = set()
        self._depends: dict[Node, bool] = {}
        self._layers: dict[int, tuple[Tensor, int, Tensor, LinearLayer]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in CONVOLUTIONS:
            result = self._convolution(function, *args, **kwargs)
        elif function is F.linear:
            result = self._linear(*args, **kwargs)
        elif function is F.batch_norm:
            result = self._batch_norm(*args, **kwargs)
        elif function in _ACTIVATIONS or is_relu(function, args, kwargs):
            result = self._activation(function, *args, **kwargs)
        else:
            result = self._attention(function, args, kwargs)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            self.admit(tensor)
        return result

    def _attention(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The calls of transformers and gated networks with their rules; every other call unchanged."""
        if function in _NORMS:
            return _NORMS[function](self._kept.keep, *args, **kwargs)
        if function is F.normalize:
            return lrp_attention.normalize(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            return self._ruled(lrp_attention.attention(*args, **kwargs))
        if function is F.multi_head_attention_forward:
            result = lrp_attention.multi_head_attention(self._linear, *args, **kwargs)
            return function(*args, **kwargs) if result is None else (self._ruled(result[0]), None)
        if function in _SIGMOIDS and args and self.depends_on_images(args[0]):
            return self._gate(function, *args, **kwargs)
        return self._product(function, args, kwargs)

    def _product(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function in _PRODUCTS and len(args) == 2 and all(map(self.depends_on_images, args)):
            return self._ruled(lrp_attention.product(_PRODUCTS[function], *args))
        if function in _PRODUCTS_IN_PLACE and all(map(self.depends_on_images, args)):
            return args[0].copy_(self._ruled(lrp_attention.product(torch.mul, *args)))
        if function is torch.einsum and len(args) == 3 and all(map(self.depends_on_images, args[1:])):
            return self._ruled(lrp_attention.product(lambda one, other: torch.einsum(args[0], one, other), *args[1:]))
        return function(*args, **kwargs)

    def _gate(self, function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scratch = input.detach().clone()
        with torch.no_grad():
            opened = function(scratch, *args, **kwargs)
        path, kind = self._caller()
        where = f"Sigmoid in {path} ({kind})" if path else f"Sigmoid in {kind}"
        without_rule = self.without_rule
        gate = lrp_attention.Gate.apply(input, opened, lambda: without_rule.setdefault(where, path))
        return input.copy_(gate) if scratch._version > 0 else gate

    def _ruled(self, result: Tensor) -> Tensor:
        """A result whose new nodes in the graph all come from a rule."""
        self.admit(result, ruled=True)
        return result

    @property
    def kept_by_biases(self) -> list[Tensor]:
        return self._kept.of_images

    def depends_on_images(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return False
        self.admit(value)
        node = value.grad_fn or torch.autograd.graph.get_gradient_edge(value).node
        return self._depends.get(node, node is self._image_node)

    def admit(self, value: Any, *, ruled: bool = False) -> None:
        """Checks the nodes that this result added to the graph, and notes those without a rule.

        Args:
            ruled: whether all of them come from a rule.
        """
        if not isinstance(value, Tensor) or value.grad_fn is None:
            return
        waiting = list(nodes_behind(value, seen=self._seen))
        # A node depends on the nodes behind it, so these are settled first.
        while waiting:
            node = waiting[-1]
            pending = [back for back, _ in node.next_functions if back is not None and back not in self._depends]
            if pending:
                waiting.extend(pending)
                continue
            waiting.pop()
            if node not in self._depends:
                inner = [self._depends[back] for back, _ in node.next_functions if back is not None]
                self._depends[node] = node is self._image_node or any(inner)
                if self._depends[node] and not ruled and not _has_rule(node.name(), sum(inner)):
                    self._note(_operation(node.name()))

    def _note(self, operation: str) -> None:
        path, kind = self._caller()
        where = f"{path} ({kind})" if path else kind
        self.without_rule.setdefault(f"{operation} in {where}", path)

    def _caller(self) -> tuple[str, str]:
        """The innermost module whose code is running."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            caller = frame.f_locals.get("self")
            if isinstance(caller, nn.Module) and id(caller) in self._paths:
                return self._paths[id(caller)], type(caller).__name__
            frame = frame.f_back
        return "", "the model"

    def _convolution(
        self,
        function: Callable[..., Any],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        def product(x: Tensor, w: Tensor) -> Tensor:
            return function(x, w, None, *args, **kwargs)

        if bias is not None:
            bias = bias.detach().view((-1,) + (1,) * (input.dim() - 2))
        return self._layer(product, input, weight, bias)

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self._layer(F.linear, input, weight, None if bias is None else bias.detach())

    def _layer(
        self, product: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        if self.depends_on_images(weight):
            self._note("weights that depend on the image")
        with torch.no_grad():
            sums = product(inputs, weight)
        layer = LinearLayer(product, inputs.detach(), weight.detach(), sums, bias)
        outputs = _LinearLayer.apply(inputs, layer, self.rule, self._kept.keep)
        self._layers[id(outputs)] = (outputs, outputs._version, inputs, layer)
        return outputs

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training:  # it uses the statistics of the batch, so it is not linear
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if running_mean is None or running_var is None:
            raise ValueError("LRP: model must keep the statistics of its batch normalisations (got one without)")
        with torch.no_grad():
            scale: Tensor = (running_var + eps).rsqrt() * (1 if weight is None else weight)
            shift = (0 if bias is None else bias) - running_mean * scale
            scale, shift = scale.to(input.dtype), shift.to(input.dtype)
            _, version, inputs, layer = self._layers.get(id(input), (None, -1, input, None))
            # A layer's output, with channels first, that was not changed in place since.
            if layer is not None and (layer.product is not F.linear or input.dim() == 2) and input._version == version:
                layer = layer.folded(scale, shift)
            else:
                per_channel = (-1,) + (1,) * (input.dim() - 2)
                scale, shift, inputs = scale.view(per_channel), shift.view(per_channel), input
                layer = LinearLayer(torch.mul, input.detach(), scale, input * scale, shift)
        return _LinearLayer.apply(inputs, layer, self.rule, self._kept.keep)

    def _activation(self, function: Callable[..., Any], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scratch = input.detach().clone()
        with torch.no_grad():
            activated = function(scratch, *args, **kwargs)
        in_place = scratch._version > 0
        passed = _Activation.apply(input, activated)
        return input.copy_(passed) if in_place else passed


class _LinearLayer(torch.autograd.Function):
    """A linear layer whose backward pass turns multipliers of its outputs into multipliers of its inputs."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: LinearLayer, rule: Rule, keep: Callable[[Tensor], None]) -> Tensor:
        ctx.layer, ctx.rule, ctx.keep = layer, rule, keep
        return layer.outputs()

    @staticmethod
    def backward(ctx: Any, multiplier: Tensor) -> tuple[Tensor, None, None, None]:
        redistributed, kept = ctx.rule.redistribute(ctx.layer, multiplier)
        ctx.keep(kept)
        return redistributed, None, None, None


class _Activation(torch.autograd.Function):
    """An activation that passes relevance unchanged: a * m_a = z * m_z."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, activated: Tensor) -> Tensor:
        zero = inputs == 0  # a value of 0 has no relevance
        ctx.save_for_backward((activated / inputs.masked_fill(zero, 1)).masked_fill(zero, 0))
        return activated

    @staticmethod
    def backward(ctx: Any, multiplier: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return multiplier * slope, None


def _has_rule(node_name: str, inputs_that_depend: int) -> bool:
    if node_name in _OWN_NODES:
        return True
    operation = _operation(node_name)
    return operation in _PLAIN_NODES or (operation in _PLAIN_IF_CONSTANT and inputs_that_depend == 1)


def _operation(node_name: str) -> str:
    """The operation of a node: `MulBackward0` -> `Mul`."""
    return node_name.rsplit("::", 1)[-1].rstrip("0123456789").removesuffix("Backward")
