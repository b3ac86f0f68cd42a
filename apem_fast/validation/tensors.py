"""Checks of models, images, maps, directions, labels and targets."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral

import torch
from torch import Tensor, nn

from apem_fast.callers import sentence, warn
from apem_fast.running.outputs import is_exported
from apem_fast.validation import ways_out
from apem_fast.validation.numbers import dtype_name, type_name


def _finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        what = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
        raise ValueError(sentence(f"{name} must be finite (got {what})"))


def _is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        way_out = ways_out.of_no_tensor(name, value)
        raise TypeError(sentence(f"{name} must be a torch.Tensor (got {type_name(value)}){way_out}"))
    if came := not_plain(value):
        raise TypeError(sentence(f"{name} must be {came}"))


def not_plain(tensor: Tensor) -> str | None:
    """What a tensor must be whose values do not simply lie in memory, as words for an error; None if they do."""
    if tensor.layout != torch.strided:
        return f"dense, {str(tensor.layout).removeprefix('torch.')} is not: call .to_dense() first"
    if tensor.is_neg() or tensor.is_conj():
        return "a tensor of its own values, not a lazily negated or conjugated view: call .resolve_neg().resolve_conj()"
    return None


def moving(sign: Tensor) -> None:
    """Warns of images whose gradient is 0 throughout: their rays do not move, and are censored whatever the map."""
    still = int((sign.flatten(1) == 0).all(dim=1).sum())
    if still:
        warn(
            f"the model's gradient is 0 throughout for {still} of {len(sign)} images, as if it returned classes or "
            "constants: nothing moves along their rays, so each of their epsilons is max_epsilon"
        )


def maps_by_name(relevance: object) -> None:
    """Raises unless this is several sets of maps, each under a name, as an evaluator takes them."""
    if not isinstance(relevance, Mapping):
        raise TypeError(
            sentence(f'relevance must be maps by name, such as {{"mine": relevance}} (got {type_name(relevance)})')
        )


def contrast(of_relevance: Tensor) -> None:
    """Raises if a map is constant: the filter needs pixels of different relevance."""
    flat = of_relevance.flatten(1)
    constant = (flat.amin(dim=1) == flat.amax(dim=1)).nonzero()
    if len(constant):
        i = int(constant[0])
        raise ValueError(
            sentence(
                f"relevance must not be constant, which leaves nothing to filter (got {float(flat[i, 0]):g} "
                f"throughout at index {i})"
            )
        )


ROUNDED = 1e-5
"""Images normalised in float32 may exceed the bounds of their pixels by this share of their greatest value."""


def within_bounds(images: Tensor, lower: float | Tensor | None, upper: float | Tensor | None) -> None:
    """Raises if images lie outside the bounds: clamping alone would change them, before any perturbation."""
    slack = ROUNDED * images.abs().max()
    below = lower is not None and bool((images < lower - slack).any())
    above = upper is not None and bool((images > upper + slack).any())
    if below or above:
        least, greatest = (float(bound) for bound in images.aminmax())
        raise ValueError(
            sentence(
                "images must lie within bounds, which are in the space of the model's input "
                f"(got {least:g} to {greatest:g})"
            )
        )


def model(value: object, name: str = "model") -> None:
    if not isinstance(value, nn.Module):
        hint = "; its .module() is one" if isinstance(value, torch.export.ExportedProgram) else ""
        raise TypeError(sentence(f"{name} must be a torch.nn.Module (got {type_name(value)}{hint})"))
    if is_exported(value):
        return
    training = next((path for path, module in value.named_modules() if getattr(module, "training", False)), None)
    if training is not None:
        where = f"its module {training!r}" if training else "it"
        raise ValueError(sentence(f"{name} must be in eval mode, call {name}.eval() ({where} is in training mode)"))


def takes_one_image(of_model: nn.Module, images: Tensor) -> None:
    """Raises if an exported model only takes the number of images that it was exported with."""
    if not is_exported(of_model):
        return
    try:
        with torch.no_grad():
            of_model(images[:1])
    except Exception as error:  # noqa: BLE001 - the guards of torch.export raise what they like
        raise ValueError(
            sentence(
                "model must take any number of images: export it with a dynamic first dimension "
                f"(got, for one image: {str(error).splitlines()[0]})"
            )
        ) from None


LOOKS_LIKE_BYTES = 50.0  # images with a greater value are taken for pixels in 0...255


def images(value: object, of_model: nn.Module) -> None:
    _is_tensor("images", value)
    assert isinstance(value, Tensor)
    if value.dim() != 4 or value.numel() == 0:
        came = f"{tuple(value.shape)}){ways_out.of_images(value)}"
        raise ValueError(sentence(f"images must have shape (N, C, H, W) and not be empty (got {came}"))
    if value.dtype not in (torch.float32, torch.float64):
        came = f"{dtype_name(value)}){ways_out.of_dtype(value)}"
        raise TypeError(sentence(f"images must be float32 or float64 (got {came}"))
    parameter = next(of_model.parameters(), None)
    if parameter is not None and parameter.device != value.device:
        raise ValueError(
            sentence(
                f"images must be on the model's device, {parameter.device} (got {value.device}); "
                f'images.to("{parameter.device}") moves them'
            )
        )
    _dtype_of_weights(value, of_model)
    _finite("images", value)
    least, greatest = (float(bound) for bound in value.detach().aminmax())
    if least >= 0 and greatest > LOOKS_LIKE_BYTES:
        warn(
            f"images reach from {least:g} to {greatest:g}, which looks like pixels in 0...255; "
            "they must be what the model receives, after its normalisation"
        )


def _dtype_of_weights(images: Tensor, of_model: nn.Module) -> None:
    weights = next(((name, p) for name, p in of_model.named_parameters() if p.is_floating_point()), None)
    if weights is None or weights[1].dtype == images.dtype:
        return
    name, dtype = weights[0], dtype_name(weights[1])
    if weights[1].dtype in (torch.float16, torch.bfloat16):
        raise TypeError(
            sentence(
                f"model must have float32 or float64 weights, in which a first flip is exact (got {dtype} in "
                f"{name!r}); model.float() holds the same weights"
            )
        )
    raise TypeError(sentence(f"images must have the dtype of the model's weights, {dtype} (got {dtype_name(images)})"))


def _like_images(name: str, value: object, of_images: Tensor) -> Tensor:
    _is_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype != of_images.dtype:
        came = f"{dtype_name(value)}); {name}.to(images.dtype) is"
        raise TypeError(sentence(f"{name} must be {dtype_name(of_images)} like images (got {came}"))
    if value.device != of_images.device:
        came = f"{value.device}); {name}.to(images.device) is"
        raise ValueError(sentence(f"{name} must be on the device of images, {of_images.device} (got {came}"))
    return value


def map_of_images(name: str, value: object, of_images: Tensor) -> Tensor:
    """A map with a finite value for each pixel, or for each channel of each pixel."""
    value = _like_images(name, value, of_images)
    n, c, h, w = of_images.shape
    if tuple(value.shape) not in ((n, 1, h, w), (n, c, h, w)):
        raise ValueError(
            sentence(
                f"{name} must have shape {(n, 1, h, w)} or {(n, c, h, w)} (got {tuple(value.shape)})"
                f"{ways_out.of_maps(name, value, of_images)}"
            )
        )
    _finite(name, value)
    return value


def without_ray(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Which maps (N, 1 or C, H, W) are all 0, and so leave no relevance ray, and which all 1: no irrelevance ray."""
    flat = maps.flatten(1)
    return (flat == 0).all(dim=1), (flat == 1).all(dim=1)


def relevance(value: object, of_images: Tensor, called: str | None = None) -> None:
    name = "relevance" if called is None else f"relevance[{called!r}]"
    value = map_of_images(name, value, of_images)
    low, high = value.amin(dim=(1, 2, 3)), value.amax(dim=(1, 2, 3))
    if bool((low < 0).any()) or bool((high > 1).any()):
        raise ValueError(
            sentence(
                f"{name} must lie in [0, 1] (got min={float(low.min()):g}, max={float(high.max()):g}); "
                "relevance_map makes such a map of an attribution"
            )
        )
    for bad, what in zip(without_ray(value), "01"):
        if bool(bad.any()):
            index = int(bad.nonzero()[0])
            ray = "relevance" if what == "0" else "irrelevance"
            raise ValueError(
                sentence(f"{name} must not be all {what}, which leaves no {ray} ray (got such a map at index {index})")
            )


def direction(value: object, of_images: Tensor) -> None:
    value = _like_images("direction", value, of_images)
    if value.shape != of_images.shape:
        raise ValueError(sentence(f"direction must have shape {tuple(of_images.shape)} (got {tuple(value.shape)})"))
    _finite("direction", value)
    still = (value == 0).flatten(1).all(dim=1)
    if bool(still.any()):
        raise ValueError(sentence(f"direction must not be all 0 (got such a one at index {int(still.nonzero()[0])})"))


def labels(value: object, predicted: Tensor) -> None:
    if value is None:
        return
    _is_tensor("labels", value)
    assert isinstance(value, Tensor)
    if value.dtype != torch.int64 or value.shape != predicted.shape:
        raise ValueError(
            sentence(
                f"labels must be int64 of shape {tuple(predicted.shape)} (got {dtype_name(value)} of shape "
                f"{tuple(value.shape)}){ways_out.of_labels(value, len(predicted))}"
            )
        )
    wrong = (value.to(predicted.device) != predicted).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            sentence(
                f"labels must be the model's predictions (got {int(value[i])} at index {i}, predicted "
                f"{int(predicted[i])}); without labels they are found, and apem(..., target=) follows another class"
            )
        )


def target(value: object, labels: object, of_images: Tensor) -> Tensor | None:
    """The target classes, (N,) int64 on the images' device, or None."""
    if value is None:
        return None
    if labels is not None:
        raise ValueError(sentence("labels are the predictions, so they do not go with a target (got both)"))
    if isinstance(value, Integral) and not isinstance(value, bool):
        return torch.full((len(of_images),), int(value), dtype=torch.int64, device=of_images.device)
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.shape != of_images.shape[:1]:
        came = f"{dtype_name(value)} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type_name(value)
        raise ValueError(sentence(f"target must be a class, or int64 of shape ({len(of_images)},) (got {came})"))
    return value.to(of_images.device)


def maps_without_rays(value: object, of_images: Tensor) -> Tensor:
    """Which maps (N, 1 or C, H, W) are all 0, all 1 or not finite: (N,) bool. Other errors are still raised."""
    value = _like_images("relevance", value, of_images)
    if value.dim() != 4 or len(value) != len(of_images):
        return torch.zeros(len(value), dtype=torch.bool, device=value.device)  # refused for its shape later
    zero, one = without_ray(value.detach())
    return ~value.detach().flatten(1).isfinite().all(dim=1) | zero | one
