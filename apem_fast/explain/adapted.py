"""Explanation methods from elsewhere, with the same interface: Captum's classes, and functions of your own.

af.explain.from_captum(captum.attr.IntegratedGradients, n_steps=20)(model, images)
af.explain.from_callable(my_method, strength=3)(model, images)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast.callers import warn
from apem_fast.explain.explainer import Explainer, checked_logits, require_at_least_one, require_known_labels
from apem_fast.explain.grad_cam import enlarged
from apem_fast.seeding import generator_for, seeded
from apem_fast.validation import make_numbers_plain


@dataclass(frozen=True)
class Adapted(Explainer):
    """A method from elsewhere. Use `from_captum` or `from_callable` to make one.

    Before each call, torch's random numbers are seeded with the values of the call's first image and `seed`. So with
    the default `batch_size` of 1 an image's explanation does not depend on the other images.

    Args:
        function: (model, images, labels, **method_options) -> attribution (N, C, H, W), (N, 1, h, w) or (N, h, w), a
            tensor or a NumPy array. If its size is not that of the images, it is resized bilinearly, with a warning if
            that changes its proportions.
        title: the method's name in tables.
        method_options: keyword arguments for `function`.
        path: its import path ("captum.attr.Saliency"), or "" if it has none.
        seed: any integer; another seed gives a random method other random numbers.
        batch_size: the most images in one call.
    """

    function: Callable[..., Tensor | np.ndarray]
    title: str
    method_options: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    seed: int = 0
    batch_size: int = 1

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_at_least_one(self.title, "batch_size", self.batch_size)

    @property
    def name(self) -> str:  # type: ignore[override]  # an object's own: a class variable of the other methods
        return self.title

    @property
    def options(self) -> dict[str, Any]:
        return {
            "method": self.path or self.title,
            **self.method_options,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            require_known_labels(checked_logits(model, images, self.name), labels, self.name)
        with seeded(generator_for(images[0], self.seed).initial_seed(), images.device):
            attribution = self.function(model, images, labels, **self.method_options)
        if isinstance(attribution, np.ndarray) and attribution.dtype.kind in "fiub":
            attribution = torch.from_numpy(attribution.astype(np.float64))
        if not isinstance(attribution, Tensor):
            raise TypeError(
                f"{self.name}: the method must return a tensor or an array (got {type(attribution).__name__})"
            )
        map_ = attribution.detach()
        map_ = map_[:, None] if map_.dim() == 3 else map_
        if map_.dim() != 4 or map_.shape[0] != images.shape[0] or map_.shape[1] not in (1, images.shape[1]):
            raise ValueError(
                f"{self.name}: the method must return shape (N, C, H, W), (N, 1, h, w) or (N, h, w) for images "
                f"{tuple(images.shape)} (got {tuple(attribution.shape)})"
            )
        (height, width), (own_height, own_width) = images.shape[2:], map_.shape[2:]
        if abs(own_height * width - own_width * height) > max(height, width):
            warn(
                f"{self.name}: a map of {own_height} by {own_width} is stretched to the images' {height} by {width}, "
                "which changes its proportions"
            )
        return enlarged(map_.to(images), images)


@dataclass(frozen=True)
class _CaptumCall:
    """Makes Captum's object for the model and calls it. Two are equal if their methods are."""

    method: Callable[[nn.Module], Any]

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return self.method(model).attribute(images.requires_grad_(), target=labels, **options)


def from_captum(
    method: Callable[[nn.Module], Any], *, name: str | None = None, seed: int = 0, batch_size: int = 1, **options: Any
) -> Explainer:
    """An explainer made of a Captum attribution method.

    Args:
        method: a class of `captum.attr`, or anything that makes such an object of a model:
            `lambda model: LayerGradCam(model, model.layer4)`.
        name: its name in tables; None takes the class's name.
        seed: any integer, for methods that draw random numbers.
        batch_size: the most images in one call of the method.
        options: keyword arguments of the method's `attribute`, such as `n_steps`; they are recorded.

    Raises:
        TypeError: the method is not callable: pass the class, not an object made for one model.
    """
    if not callable(method) or (hasattr(method, "attribute") and not isinstance(method, type)):
        raise TypeError(
            f"from_captum: method must be a class of captum.attr or make one of a model (got {type(method).__name__})"
        )
    return Adapted(_CaptumCall(method), name or _title_of(method), options, _path_of(method), seed, batch_size)


def from_callable(
    function: Callable[..., Tensor | np.ndarray],
    *,
    name: str | None = None,
    seed: int = 0,
    batch_size: int = 1,
    **options: Any,
) -> Explainer:
    """An explainer made of a function (model, images, labels, **options) -> attribution.

    Args:
        function: called with the model, images (N, C, H, W) that it may change, labels (N,) int64 and the options;
            returns (N, C, H, W), (N, 1, h, w) or (N, h, w), as a tensor or a NumPy array.
        name: its name in tables; None takes the function's name.
        seed: any integer, for methods that draw torch's random numbers.
        batch_size: the most images in one call of the function.
        options: keyword arguments of the function; they are recorded.

    Raises:
        TypeError: the function is not callable.
    """
    if not callable(function):
        raise TypeError(f"from_callable: function must be callable (got {type(function).__name__})")
    return Adapted(function, name or _title_of(function), options, _path_of(function), seed, batch_size)


def _title_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _path_of(function: Callable[..., Any]) -> str:
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<")
    if not module or "<" in name:  # an object, a lambda or a function within a function
        return ""
    return f"captum.attr.{name}" if module.startswith("captum.attr.") else f"{module}.{name}"
