"""Grad-CAM and Guided Grad-CAM."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from apem_fast.explain.explainer import Explainer, explainable_logits, require_batch_size
from apem_fast.explain.guided import guided_gradient
from apem_fast.explain.intercepted import CONVOLUTIONS, require_visible, running_under


@dataclass(frozen=True)
class GradCAM(Explainer):
    """ReLU(sum_k a_k A_k): the feature maps A of the last convolutional unit, each weighed by a_k, the mean over its
    pixels of the gradient of the label's logit (P1 section IV-A), enlarged bilinearly to the images' size and the same
    in every channel.

    Left to itself, the method takes the last convolution whose output has more than one pixel, and of it the output of
    its unit: after the batch norm, the skip connection and the ReLU that follow at the same resolution. That is
    relu5_3 of VGG-16 and the output of layer4 of a ResNet, the places where Grad-CAM is usually read.

    Args:
        layer: the path of the module to read instead, as in `model.named_modules()` ("features.28", "layer4.1.conv2"):
            its bare output. None finds the place as described.
        batch_size: the most images in one forward and backward pass; None for what usually runs well there.

    Raises:
        ValueError: on a call, for a layer that is not there or gives no feature maps, or a model without convolution.
    """

    name: ClassVar[str] = "Grad-CAM"
    layer: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_batch_size(self.name, self.batch_size)

    @property
    def passes_per_image(self) -> float:
        return 3.0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return class_activation_map(model, images, labels, self.layer, self.name)


@dataclass(frozen=True)
class GuidedGradCAM(Explainer):
    """Grad-CAM times Guided Backpropagation, element by element (P1 section IV-A), signed.

    Args:
        layer: as in `GradCAM`.
        batch_size: the most images in one forward and backward pass; None for what usually runs well there.

    Raises:
        ValueError: on a call, for the models that `GradCAM` or `GuidedBackprop` refuses.
    """

    name: ClassVar[str] = "Guided Grad-CAM"
    layer: str | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_batch_size(self.name, self.batch_size)

    @property
    def passes_per_image(self) -> float:
        return 6.0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        guided = guided_gradient(model, images, labels, self.name)
        return guided * class_activation_map(model, images, labels, self.layer, self.name)


def class_activation_map(model: nn.Module, images: Tensor, labels: Tensor, layer: str | None, name: str) -> Tensor:
    """Grad-CAM, enlarged to the images: (N, C, H, W), at least 0."""
    inputs = images.detach().requires_grad_()
    if layer is None:
        logits, maps = _maps_of_last_convolution(model, inputs, labels, name)
    else:
        logits, maps = _maps_of_layer(model, inputs, labels, layer, name)
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), maps, allow_unused=True)
    if gradient is None:
        raise ValueError(f"{name}: layer must lie between the images and the logits (got {layer!r})")
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return enlarged((weights * maps.detach()).sum(dim=1, keepdim=True).relu(), images)


def enlarged(map_: Tensor, images: Tensor) -> Tensor:
    """A map (N, 1 or C, h, w) brought bilinearly to the images' height and width, and to all of their channels."""
    if map_.shape[2:] != images.shape[2:]:
        map_ = F.interpolate(map_, size=images.shape[2:], mode="bilinear", align_corners=False)
    return map_.expand(images.shape).contiguous()


def _maps_of_last_convolution(model: nn.Module, inputs: Tensor, labels: Tensor, name: str) -> tuple[Tensor, Tensor]:
    require_visible(model, name)
    watch = _LastFeatureMaps()
    with running_under(watch):
        logits = explainable_logits(model, inputs, labels, name)
    if watch.maps is None:
        raise ValueError(
            f"{name}: model must have a convolution whose output has more than one pixel, or name a layer (got none)"
        )
    return logits, watch.maps


class _LastFeatureMaps(TorchFunctionMode):
    """Holds on to the latest result that has the size of the last convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: Tensor | None = None

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() == 4 and result.requires_grad:
            size = result.shape[2:]
            if (function in CONVOLUTIONS and size.numel() > 1) or (
                self.maps is not None and size == self.maps.shape[2:]
            ):
                self.maps = result
        return result


def _maps_of_layer(model: nn.Module, inputs: Tensor, labels: Tensor, layer: str, name: str) -> tuple[Tensor, Tensor]:
    modules = dict(getattr(model, "named_modules", tuple)())
    if layer not in modules:
        close = difflib.get_close_matches(layer, modules, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name}: layer must be the path of a module of the model (got {layer!r}{hint})")
    outputs = []

    def keep(module: nn.Module, arguments: tuple, output: Any) -> Any:
        outputs.append(output)
        # The model goes on with a copy, so that a ReLU that works in place leaves this output as it is.
        return output.clone() if isinstance(output, Tensor) else output

    handle = modules[layer].register_forward_hook(keep)
    try:
        logits = explainable_logits(model, inputs, labels, name)
    finally:
        handle.remove()
    if not outputs or not isinstance(outputs[-1], Tensor) or outputs[-1].dim() != 4 or not outputs[-1].requires_grad:
        came = "no call" if not outputs else getattr(outputs[-1], "shape", type(outputs[-1]).__name__)
        came = tuple(came) if isinstance(came, torch.Size) else came
        raise ValueError(f"{name}: layer {layer!r} must give feature maps of shape (N, channels, h, w) (got {came})")
    return logits, outputs[-1]
