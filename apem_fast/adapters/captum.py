"""APEM as a function with the arguments of Captum's metrics, such as `captum.metrics.infidelity`.

from apem_fast.adapters.captum import apem
attributions = captum.attr.Saliency(model).attribute(inputs, target=target, abs=False)
apem(model, inputs, attributions, target=target)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apem_fast.callers import said_by, sentence
from apem_fast.metric import apem as apem_of_relevance
from apem_fast.options import ENGINE, documented
from apem_fast.papers import PERCENTILE
from apem_fast.relevance import relevance_map
from apem_fast.validation import plain


@documented([name for name in ENGINE if name != "batch_size"])
@said_by("apem")
def apem(
    forward_func: Callable[..., Tensor],
    inputs: Tensor | tuple[Tensor],
    attributions: Tensor | tuple[Tensor],
    baselines: None = None,
    additional_forward_args: Any = None,
    target: int | list[int] | Tensor | None = None,
    max_examples_per_batch: int | None = None,
    *,
    percentile: float | None = PERCENTILE,
    channels: Literal["sum", "keep"] = "sum",
    pixels: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> Tensor:
    """APEM of the attributions of each example: epsilon_plus - epsilon_minus. High is good.

    Args:
        forward_func: the model, in eval mode, or any function of it that returns logits (N, classes).
        inputs: (N, C, H, W), alone or as a tuple of one.
        attributions: as an attribution method of Captum returns them for these inputs, signed.
        baselines: must be None. It is here because Captum's metrics have it; APEM needs none.
        additional_forward_args: passed to every call of forward_func; no tensors, since these would need a row for
            each perturbed input.
        target: the class that was explained, for all examples, or (N,) or a list with one for each; an error if it is
            not the prediction. None takes the predictions.
        max_examples_per_batch: how many perturbed inputs one call gets; None measures which number is fastest.
        percentile, channels: how attributions are made into relevance maps, see `af.relevance_map`.
        pixels: a function from inputs (N, C, H, W) to pixels in [0, 1], such as `lambda x: x * std + mean`; maps are
            multiplied by them, which is the papers' last stage, times-image. None does not multiply.
        options: see `apem_fast.options.Options`, except batch_size, which Captum calls max_examples_per_batch.

    Returns:
        (N,) float64, on the device of the inputs. `af.apem` returns the epsilons and censored flags too.
    """
    images, attribution = _single("inputs", inputs), _single("attributions", attributions)
    extra = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
    extra = () if additional_forward_args is None else extra
    if any(isinstance(value, Tensor) for value in extra):
        raise TypeError(sentence("additional_forward_args must not hold tensors (got torch.Tensor)"))
    if baselines is not None:
        raise ValueError(sentence(f"baselines must be None, for APEM has none (got {type(baselines).__name__})"))
    labels = _labels(target, images)
    factor = None if pixels is None else pixels(images)
    relevance = relevance_map(attribution.to(images.dtype), factor, percentile=percentile, channels=channels)
    result = apem_of_relevance(
        _Forward(forward_func, extra), images, relevance, labels=labels, batch_size=max_examples_per_batch, **options
    )
    return result.score.to(images.device)


def _labels(target: int | list[int] | Tensor | None, images: Tensor) -> Tensor | None:
    """The label of each image, from what Captum accepts as a target."""
    if target is None:
        return None
    classes = [plain(label) for label in (target if isinstance(target, list) else [target])]
    other = [label for label in classes if not isinstance(label, int)]
    if isinstance(target, list) and other:
        raise TypeError(sentence(f"target must be a class for each image (got a list with {other[0]!r})"))
    if not other:  # a tensor with several values is not a number
        target = torch.tensor(classes, dtype=torch.int64, device="cpu")
    if not isinstance(target, Tensor):
        raise TypeError(sentence(f"target must be an int, a list or a tensor (got {type(target).__name__})"))
    target = target.to(images.device)
    return target.expand(len(images)) if target.numel() == 1 and target.dim() < 2 else target


class _Forward(nn.Module):
    """A function as a module; if it is a method of a module, that module is a submodule."""

    def __init__(self, function: Callable[..., Tensor], extra: tuple[Any, ...]):
        super().__init__()
        if not callable(function):
            raise TypeError(sentence(f"forward_func must be callable (got {type(function).__name__})"))
        owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner
        self._call, self._extra = (function,), extra  # in a tuple, so that a module is not registered twice
        self.training = False  # only of this wrapper: the owner keeps its own mode, which is checked

    def forward(self, x: Tensor) -> Tensor:
        return self._call[0](x, *self._extra)


def _single(name: str, value: Tensor | tuple[Tensor]) -> Tensor:
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, Tensor):
        came = f"{len(value)} of them" if isinstance(value, tuple) else type(value).__name__
        raise TypeError(sentence(f"{name} must be one torch.Tensor (got {came})"))
    return value
