"""Grad-CAM and Guided Grad-CAM."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apem_fast.explain.explainer import Explainer, explainable_logits, require_batch_size
from apem_fast.explain.feature_maps import FeatureMaps, Watch
from apem_fast.explain.guided import guided_gradient
from apem_fast.explain.intercepted import require_visible, running_under
from apem_fast.validation import make_numbers_plain


@dataclass(frozen=True)
class GradCAM(Explainer):
    """Grad-CAM: ReLU(sum_k a_k A_k), with the feature maps A of the last convolutional unit (P1 section IV-A).

    The weight a_k is the mean over the pixels of map k of the gradient of the label's logit. The result is resized
    bilinearly to the images' size and is the same in every channel.

    By default the method takes the last convolution whose output has more than one pixel, and reads its unit's output:
    after the batch norm, skip connection and ReLU that follow at the same resolution. That is relu5_3 of VGG-16 and the
    output of layer4 of a ResNet, where Grad-CAM is usually read.

    If attention follows, as in a vision transformer, it takes the tokens that enter the last attention, arranged on
    their grid without class, distillation and register tokens: the first norm of a ViT's last block. It never takes
    the patch embedding, and raises an error if a model's last tokens cannot be read as maps.

    Args:
        layer: the path of the module to read instead, as in `model.named_modules()` ("features.28", "layer4.1.conv2",
            "blocks.11.norm1"). Its own output is read; of several tensors, the first. None finds the layer as above.
        reshape: a function that makes maps (N, channels, h, w) of that layer's output. It is needed if the output is
            neither such maps, nor tokens (N, tokens, channels) or maps (N, h, w, channels) on a grid that a convolution
            returned. It may only move values or drop some: `lambda tokens: tokens[:, 1:].mT.unflatten(2, (14, 14))`.
        batch_size: the most images in one batch; None for the usual number on that device.

    Raises:
        ValueError: on a call: there is no such layer, its output cannot be read as maps, or the model has no
            convolution.
    """

    name: ClassVar[str] = "Grad-CAM"
    layer: str | None = None
    batch_size: int | None = None
    reshape: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)
        _require_layer_of(self.reshape, self.layer, self.name)

    @property
    def cost_per_image(self) -> float:
        return 3.0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return class_activation_map(model, images, labels, self.layer, self.name, self.reshape)


@dataclass(frozen=True)
class GuidedGradCAM(Explainer):
    """The elementwise product of Grad-CAM and Guided Backpropagation (P1 section IV-A), signed.

    Args:
        layer, reshape: as in `GradCAM`.
        batch_size: the most images in one batch; None for the usual number on that device.

    Raises:
        ValueError: on a call, for the models that `GradCAM` or `GuidedBackprop` refuses.
    """

    name: ClassVar[str] = "Guided Grad-CAM"
    layer: str | None = None
    batch_size: int | None = None
    reshape: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        require_batch_size(self.name, self.batch_size)
        _require_layer_of(self.reshape, self.layer, self.name)

    @property
    def cost_per_image(self) -> float:
        return 6.0

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        guided = guided_gradient(model, images, labels, self.name)
        return guided * class_activation_map(model, images, labels, self.layer, self.name, self.reshape)


def _require_layer_of(reshape: Callable[[Tensor], Tensor] | None, layer: str | None, name: str) -> None:
    if reshape is None:
        return
    if not callable(reshape):
        raise TypeError(f"{name}: reshape must be callable (got {type(reshape).__name__})")
    if layer is None:
        raise ValueError(f"{name}: reshape goes with a layer, whose output it rearranges (got no layer)")


def class_activation_map(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    layer: str | None,
    name: str,
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Grad-CAM, resized to the images: (N, C, H, W), at least 0."""
    inputs = images.detach().requires_grad_()
    if layer is None:
        logits, candidates = _last_maps(model, inputs, labels, name)
    else:
        logits, candidates = _maps_of_layer(model, inputs, labels, layer, name, reshape)
    gradients = torch.autograd.grad(
        logits.gather(1, labels[:, None]).sum(), [one.edge for one in candidates], allow_unused=True
    )
    found, gradient = next(
        ((one, gradient) for one, gradient in zip(candidates, gradients) if gradient is not None), (None, None)
    )
    if found is None or gradient is None:
        came = "maps that the logits do not depend on" if layer is None else repr(layer)
        raise ValueError(f"{name}: layer must lie between the images and the logits (got {came})")
    maps, of_maps = found.read(found.values), found.read(gradient)
    if found.of_tokens and not bool(of_maps.any()) and bool(gradient.any()):
        raise ValueError(
            f"{name}: layer must be one after which the picture's tokens still reach the logits, such as the first "
            f"norm of the last block (got {layer!r}, of which only other tokens do)"
        )
    weights = of_maps.mean(dim=(2, 3), keepdim=True)
    return enlarged((weights * maps).sum(dim=1, keepdim=True).relu(), images)


def enlarged(map_: Tensor, images: Tensor) -> Tensor:
    """A map (N, 1 or C, h, w), resized bilinearly to the images' height and width and repeated for their channels."""
    if map_.shape[2:] != images.shape[2:]:
        map_ = F.interpolate(map_, size=images.shape[2:], mode="bilinear", align_corners=False)
    return map_.expand(images.shape).contiguous()


def _last_maps(model: nn.Module, inputs: Tensor, labels: Tensor, name: str) -> tuple[Tensor, list[FeatureMaps]]:
    require_visible(model, name)
    watch = Watch(inputs)
    with watch.over(model), running_under(watch):
        logits = explainable_logits(model, inputs, labels, name)
    if watch.unread is not None:
        raise ValueError(
            f"{name}: layer must be named, and with reshape= how its output lies on the picture, for a model whose "
            f"last layers work on tokens that cannot be read as maps (got such a layer in {watch.unread})"
        )
    found = watch.found
    if not found:
        raise ValueError(
            f"{name}: model must have a convolution whose output has more than one pixel, or name a layer (got none)"
        )
    return logits, found


def _maps_of_layer(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    layer: str,
    name: str,
    reshape: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, list[FeatureMaps]]:
    modules = dict(getattr(model, "named_modules", tuple)())
    if layer not in modules:
        close = difflib.get_close_matches(layer, modules, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name}: layer must be the path of a module of the model (got {layer!r}{hint})")
    outputs: list[Any] = []

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        outputs.append(_first_tensor(output))
        # The model continues with a copy, so that an in-place ReLU does not change this output.
        if isinstance(output, Tensor):
            return output.clone()
        if type(output) in (tuple, list) and isinstance(output[0], Tensor):
            return type(output)([output[0].clone(), *output[1:]])
        return output

    watch = Watch(inputs)
    handle = modules[layer].register_forward_hook(keep)
    try:
        with running_under(watch):
            logits = explainable_logits(model, inputs, labels, name)
    finally:
        handle.remove()
    output = outputs[-1] if outputs else None
    if not isinstance(output, Tensor) or not output.requires_grad:
        came = "no call" if not outputs else "an output without a gradient"
        raise ValueError(f"{name}: layer {layer!r} must give feature maps of shape (N, channels, h, w) (got {came})")
    read = reshape or watch.reading(output.shape)
    if read is None:
        raise ValueError(
            f"{name}: layer {layer!r} must give feature maps of shape (N, channels, h, w) (got {tuple(output.shape)}), "
            "or tokens on a grid that a convolution gave; reshape= says how other outputs become maps"
        )
    if reshape is not None:
        _require_rearrangement(reshape, output.detach(), name)
    return logits, [FeatureMaps.of(output, read, of_tokens=output.dim() == 3 or reshape is not None)]


def _first_tensor(output: Any) -> Any:
    """A layer's output, or its first tensor if it is a tuple or a record, as in Hugging Face's models."""
    several = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((value for value in several if isinstance(value, Tensor)), output)


def _require_rearrangement(reshape: Callable[[Tensor], Tensor], output: Tensor, name: str) -> None:
    maps = reshape(output)
    if not isinstance(maps, Tensor) or maps.dim() != 4 or maps.shape[0] != output.shape[0]:
        came = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise ValueError(
            f"{name}: reshape must make maps (N, channels, h, w) of the layer's output {tuple(output.shape)} "
            f"(got {came})"
        )
    # The gradient is rearranged in the same way, which is right only if values are moved or dropped.
    scaled = reshape(output * 2)
    if not torch.equal(scaled, maps * 2) or maps.numel() > output.numel():
        raise ValueError(f"{name}: reshape must do no more than move values, or leave some out (got other values)")
