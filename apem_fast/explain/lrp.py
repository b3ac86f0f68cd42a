"""Layer-wise Relevance Propagation: the logit is propagated back from layer to layer to the pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from apem_fast.explain.explainer import Explainer, checked_logits, explainable_logits, require_batch_size
from apem_fast.explain.intercepted import require_visible, running_under
from apem_fast.explain.lrp_layers import LayerRules
from apem_fast.explain.lrp_rules import AlphaBetaRule, EpsilonRule, Rule
from apem_fast.results import Result, counted, short
from apem_fast.validation import make_numbers_plain

_READ_BY = {"epsilon": ("epsilon", "relative"), "alpha-beta": ("alpha", "beta"), "naive": ()}


@dataclass(frozen=True, eq=False, repr=False)
class LrpResult(Result):
    """LRP's attribution, and how much of the logit it accounts for.

    Args:
        attribution: (N, C, H, W), the relevance of every input value.
        logit: (N,), the label's logit, which is the relevance at the start.
        kept_by_biases: (N,), the relevance that went to the biases of the layers.
    """

    attribution: Tensor
    logit: Tensor
    kept_by_biases: Tensor

    def _said(self) -> list[str]:
        shares = self.conservation, self.bias_share
        named = zip(("conservation", "bias share"), (short(share) for share in shares))
        return [counted(len(self.logit), "image"), *(f"{name} {share}" for name, share in named)]

    @property
    def conservation(self) -> Tensor:
        """The relevance that reached the input, as a share of the logit: (N,). It is 1 if all of it did."""
        return self.attribution.flatten(1).sum(dim=1) / self.logit

    @property
    def bias_share(self) -> Tensor:
        """The relevance that went to biases, as a share of the logit: (N,).

        Epsilon absorbed what is missing if the sum of this and `conservation` is below 1.
        """
        return self.kept_by_biases / self.logit


@dataclass(frozen=True)
class LRP(Explainer):
    """Layer-wise Relevance Propagation (P1 section IV-A, P2 section 4.2.2), signed.

    With z_ij = x_i w_ij, a layer passes the relevance R_j of its units to its inputs by one of

    * "epsilon": R_i = sum_j z_ij / (z_j + epsilon sign(z_j)) R_j, P1's choice, with epsilon = 1;
    * "alpha-beta": R_i = sum_j (alpha z_ij^+ / z_j^+ + beta z_ij^- / z_j^-) R_j;
    * "naive": R_i = sum_j z_ij / z_j R_j.

    Batch norms are folded into the layer before them. Skip connections, average pooling and other sums split relevance
    in proportion to the contributions. Max pooling gives it to the maximum. Activations with f(0) = 0 (ReLU, ReLU6,
    GELU, ...) pass it on unchanged. Attention, softmax, norms and gates follow AttnLRP (arXiv 2402.05602): both factors
    of a product that depend on the image get one half each, but the sigmoid of a gate gets nothing; softmax is replaced
    by its linear expansion; a norm divides by a constant. That paper takes a small epsilon: `LRP(epsilon=1e-6)`. The
    relevance of class tokens, of position embeddings and of that expansion is missing from `conservation`. The model is
    neither copied nor changed, and may use modules or functions.

    Args:
        rule: "epsilon", "alpha-beta" or "naive".
        epsilon: greater than 0, in the units of each layer's pre-activations (after folding).
        relative: whether epsilon is instead in units of the root mean square of the layer's pre-activations in each
            image, so that it stabilises layers of any scale equally. Advised for deep residual networks.
        alpha, beta: weights of positive and negative contributions; alpha + beta = 1, alpha > 0, beta <= 0.
        bias: True counts a unit's bias among its contributions, z_j = sum_i z_ij + b_j, so that the bias keeps its
            share of the relevance. False leaves it out of the sums, which is P2's formula to the letter. The naive rule
            then conserves all relevance (except at a unit whose inputs are all 0), but divides by sums that may be near
            0 although the unit's value is not. This is frequent with batch norm folded into biases, and the map may
            then have NaN or infinity.
        batch_size: the most images in one batch; None for the usual number on that device.

    Raises:
        ValueError: on a call: the model has layers without a rule, which the error names.
    """

    name: ClassVar[str] = "LRP"
    usual_batch: ClassVar[Mapping[str, int]] = {"cpu": 8, "cuda": 64}
    rule: str = "epsilon"
    epsilon: float = 1.0
    relative: bool = False
    alpha: float = 2.0
    beta: float = -1.0
    bias: bool = True
    batch_size: int | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)
        if self.rule not in _READ_BY:
            raise ValueError(f"{self.name}: rule must be one of {', '.join(_READ_BY)} (got {self.rule!r})")
        for option in ("relative", "bias"):
            if not isinstance(getattr(self, option), bool):
                raise TypeError(f"{self.name}: {option} must be True or False (got {getattr(self, option)!r})")
        for field in fields(self):
            readers = [rule for rule, options in _READ_BY.items() if field.name in options]
            if readers and self.rule not in readers and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{self.name}: {field.name} is an option of rule={readers[0]!r} "
                    f"(got {field.name}={getattr(self, field.name)!r} with rule={self.rule!r})"
                )
        if not 0 < self.epsilon < float("inf"):
            raise ValueError(f"{self.name}: epsilon must be finite and greater than 0 (got {self.epsilon})")
        if not (self.alpha > 0 and self.beta <= 0 and abs(self.alpha + self.beta - 1) < 1e-9):
            raise ValueError(
                f"{self.name}: alpha and beta must satisfy alpha + beta = 1, alpha > 0 and beta <= 0 "
                f"(got alpha={self.alpha}, beta={self.beta})"
            )

    @property
    def cost_per_image(self) -> float:
        return 15.0 if self.rule == "alpha-beta" else 6.0

    @property
    def options(self) -> dict[str, Any]:
        """The options that the chosen rule reads."""
        unread = {option for rule, options in _READ_BY.items() if rule != self.rule for option in options}
        return {option: value for option, value in super().options.items() if option not in unread}

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return self._result(model, images, labels).attribution

    def explain(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] | bool | None = None,
    ) -> LrpResult:
        """The same as calling the object (same arguments, same errors), with the figures on conservation."""
        results: list[LrpResult] = []

        def attribute(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            results.append(self._result(model, images, labels))
            return results[-1].attribution

        attribution = self._in_batches(attribute, model, images, labels, progress)
        if not results:
            return LrpResult(attribution, images.new_zeros(0), images.new_zeros(0))
        logit = torch.cat([result.logit for result in results])
        return LrpResult(attribution, logit, torch.cat([result.kept_by_biases for result in results]))

    def _rule(self) -> Rule:
        if self.rule == "alpha-beta":
            return AlphaBetaRule(self.alpha, self.beta, self.bias)
        return EpsilonRule(0.0 if self.rule == "naive" else self.epsilon, self.relative, self.bias)

    def _result(self, model: nn.Module, images: Tensor, labels: Tensor) -> LrpResult:
        require_visible(model, self.name)
        inputs = images.detach().requires_grad_()
        layers = LayerRules(model, inputs, self._rule())
        with running_under(layers):
            logits = explainable_logits(model, inputs, labels, self.name)
        layers.admit(logits)
        _require_rules(self.name, layers.without_rule)
        self._require_same_logits(model, images, logits.detach())
        logit = logits.gather(1, labels[:, None])[:, 0]
        (multiplier,) = torch.autograd.grad(logit.sum(), inputs)
        _require_rules(self.name, layers.without_rule)  # only now is it known if a gate is not a factor
        return LrpResult(images * multiplier, logit.detach(), sum(layers.kept_by_biases, torch.zeros_like(logit)))

    def _require_same_logits(self, model: nn.Module, images: Tensor, logits: Tensor) -> None:
        """Raises unless the replaced layers compute the same logits as the model."""
        with torch.no_grad():
            expected = checked_logits(model, images, self.name)
        tolerance = torch.finfo(logits.dtype).eps ** 0.5 * float(expected.abs().max())
        difference = float((logits - expected).abs().max())
        if not difference <= tolerance:
            raise ValueError(
                f"{self.name}: model must compute the same logits each time it runs (got a difference of "
                f"{difference:.3g})"
            )


def _require_rules(name: str, without_rule: dict[str, str]) -> None:
    if without_rule:
        shown, more = list(without_rule)[:6], len(without_rule) - 6
        raise ValueError(
            f"{name}: model must be made of layers that have a rule; these have none: "
            + ", ".join(shown)
            + (f" and {more} more" if more > 0 else "")
        )
