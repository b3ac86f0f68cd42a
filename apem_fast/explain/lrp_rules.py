"""The LRP rules of one linear layer: how it passes relevance from its outputs to its inputs (P2 section 4.2.2).

Relevance is stored as a multiplier m of a neuron's value, R = x * m. The rule of a layer,
R_i = sum_j z_ij / z_j * R_j with z_ij = x_i w_ij, then becomes m_i = sum_j w_ij * R_j / z_j. This is the layer's plain
backward pass with R_j / z_j as the gradient of its outputs. It never divides by x_i. And automatic differentiation then
does by itself what LRP wants at additions, averages and reshaping (a proportional split) and at maxima (all to the
maximum).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearLayer:
    """One call of a linear layer in a forward pass: z_j = sum_i x_i w_ij + b_j.

    Args:
        product: (x, w) -> sum_i x_i w_ij, linear in both: a convolution, a matrix product, a scaling.
        inputs: x, (N, ...), without gradient.
        weight: w, with the output channels first where `folded` is used.
        sums: product(inputs, weight).
        bias: b, of a shape that broadcasts to `sums`; None is 0.
    """

    product: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    weight: Tensor
    sums: Tensor
    bias: Tensor | None = None

    def outputs(self) -> Tensor:
        """z, a tensor of its own."""
        return self.sums.clone() if self.bias is None else self.sums + self.bias

    def folded(self, scale: Tensor, shift: Tensor) -> LinearLayer:
        """This layer and the batch norm after it as one linear layer.

        In evaluation mode the batch norm is z * scale + shift, with one value for each output channel.
        """
        per_channel = (-1,) + (1,) * (self.sums.dim() - 2)
        wide_scale, wide_shift = scale.view(per_channel), shift.view(per_channel)
        return LinearLayer(
            product=self.product,
            inputs=self.inputs,
            weight=self.weight * scale.view((-1,) + (1,) * (self.weight.dim() - 1)),
            sums=self.sums * wide_scale,
            bias=wide_shift if self.bias is None else self.bias * wide_scale + wide_shift,
        )

    def backward(self, signal: Tensor, weight: Tensor) -> Tensor:
        """sum_j w_ij s_j for a signal s of the outputs' shape."""
        with torch.enable_grad():
            inputs = self.inputs.detach().requires_grad_()
            return torch.autograd.grad(self.product(inputs, weight), inputs, signal)[0]


class Rule(ABC):
    """A rule of LRP: from a layer and the multiplier of its outputs to the multiplier of its inputs."""

    @abstractmethod
    def redistribute(self, layer: LinearLayer, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers of the outputs -> (multipliers of the inputs, relevance kept by the layer's biases (N,))."""


@dataclass(frozen=True)
class EpsilonRule(Rule):
    """R_i = sum_j z_ij / (z_j + epsilon sign(z_j)) R_j; with epsilon = 0, the naive rule.

    Args:
        epsilon: at least 0, in units of the pre-activations z.
        relative: epsilon is in units of the root mean square of the layer's z in that image.
        bias: whether z_j counts the bias b_j, which then keeps its share of the relevance.
    """

    epsilon: float
    relative: bool
    bias: bool

    def redistribute(self, layer: LinearLayer, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        outputs = layer.outputs()
        total = outputs if self.bias else layer.sums
        epsilon = self.epsilon * _root_mean_square(outputs) if self.relative else self.epsilon
        signal = _ratio(multiplier * outputs, torch.where(total < 0, total - epsilon, total + epsilon))
        kept = _per_image(signal * layer.bias) if self.bias and layer.bias is not None else _nothing(outputs)
        return layer.backward(signal, layer.weight), kept


@dataclass(frozen=True)
class AlphaBetaRule(Rule):
    """R_i = sum_j (alpha z_ij^+ / sum_i' z_i'j^+ + beta z_ij^- / sum_i' z_i'j^-) R_j, with alpha + beta = 1.

    If all contributions to a unit have one sign, the quotient of the other sign is 0 / 0. Its share then goes to the
    sign that is present: otherwise each such layer would multiply the relevance by alpha, against alpha + beta = 1.

    Args:
        alpha, beta: the weights of the two signs; alpha > 0, beta <= 0.
        bias: whether the sums count b_j^+ and b_j^-, which then keep their share of the relevance.
    """

    alpha: float
    beta: float
    bias: bool

    def redistribute(self, layer: LinearLayer, multiplier: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weight = layer.inputs, layer.weight
        signs = (inputs.clamp(min=0), weight.clamp(min=0)), (inputs.clamp(max=0), weight.clamp(max=0))
        (inputs_plus, weight_plus), (inputs_minus, weight_minus) = signs
        positive = layer.product(inputs_plus, weight_plus) + layer.product(inputs_minus, weight_minus)
        negative = layer.product(inputs_plus, weight_minus) + layer.product(inputs_minus, weight_plus)
        if self.bias and layer.bias is not None:
            positive, negative = positive + layer.bias.clamp(min=0), negative + layer.bias.clamp(max=0)

        relevance = multiplier * layer.outputs()
        to_positive = _ratio(torch.where(negative < 0, self.alpha * relevance, relevance), positive)
        to_negative = _ratio(torch.where(positive > 0, self.beta * relevance, relevance), negative)

        from_plus = layer.backward(to_positive, weight_plus) + layer.backward(to_negative, weight_minus)
        from_minus = layer.backward(to_positive, weight_minus) + layer.backward(to_negative, weight_plus)
        kept = _nothing(positive)
        if self.bias and layer.bias is not None:
            kept = _per_image(to_positive * layer.bias.clamp(min=0) + to_negative * layer.bias.clamp(max=0))
        return torch.where(inputs >= 0, from_plus, from_minus), kept


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, or 0 if the denominator is 0, since a unit without contributions passes nothing on."""
    empty = denominator == 0
    return (numerator / denominator.masked_fill(empty, 1)).masked_fill(empty, 0)


def _root_mean_square(values: Tensor) -> Tensor:
    """The root mean square of each image, in a shape that broadcasts to `values`."""
    wide = values.double() if values.dtype == torch.float64 else values.float()
    return wide.square().mean(dim=tuple(range(1, values.dim())), keepdim=True).sqrt().to(values.dtype)


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).sum(dim=1)


def _nothing(values: Tensor) -> Tensor:
    return values.new_zeros(values.shape[0])
