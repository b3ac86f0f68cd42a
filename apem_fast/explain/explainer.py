"""The base class of explanation methods: one call, recorded options, and a model that is left unchanged."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from apem_fast.progress import shown
from apem_fast.running.outputs import ModelOutputError, check_scale, is_exported, logits_of
from apem_fast.running.repeated import require_repeatable_once
from apem_fast.running.undisturbed import no_autocast
from apem_fast.validation import not_plain, ways_out

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class NotFiniteError(RuntimeError):
    """An attribution has NaN or infinity."""


class Explainer(ABC):
    """An explanation method: a frozen dataclass whose fields are the method's options.

    A method defines `attribute`, which explains a few images at a time. Calling the object does the rest: it checks the
    arguments, finds the labels, and splits the images into batches. The model, the images and torch's global random
    state are left as they were, also after an error. A map is computed in the type of images and weights: an autocast
    around the call is off inside.
    """

    name: ClassVar[str]
    """The method's name in tables."""
    needs_model: ClassVar[bool] = True
    """Whether the explanation depends on the model and the label; it does not for most baselines."""
    usual_batch: ClassVar[Mapping[str, int]] = {"cpu": 16, "cuda": 64}
    """The batch size by device type if `batch_size` is None."""

    def __new__(cls, *options: Any, **named: Any) -> Self:
        if options and isinstance(options[0], nn.Module):
            name = cls.__name__
            raise TypeError(
                f"{name}: options come before the model, as in {name}()(model, images) "
                f"(got {type(options[0]).__name__} among the options)"
            )
        return super().__new__(cls)

    @abstractmethod
    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """The attribution of at most `images_at_once(images.device)` images: (N, C, H, W), signed, any scale.

        Args:
            model: in evaluation mode; returns logits (N, classes).
            images: (N, C, H, W), a copy that the method may change.
            labels: (N,) int64, the class to explain in each image.
        """

    def batch_on(self, device: torch.device) -> int:
        """The batch size on this device: `batch_size`, or the usual one."""
        return getattr(self, "batch_size", None) or self.usual_batch.get(device.type, self.usual_batch["cpu"])

    def images_at_once(self, device: torch.device) -> int:
        """How many images `attribute` gets in one call on this device."""
        return self.batch_on(device)

    def for_images(self, names: Sequence[str]) -> Explainer:
        """The method for the images of these names: the object itself, unless it looks maps up by name."""
        return self

    def has(self, name: str) -> bool:
        """Whether the image of that name can be explained: always True, unless maps are looked up by name."""
        return True

    @property
    def cost_per_image(self) -> float:
        """The approximate cost of explaining one image, in forward passes of one image, to estimate the time left."""
        return 0.0

    @property
    def options(self) -> dict[str, Any]:
        """The constructor arguments, to be recorded with every result."""
        return dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] | bool | None = None,
    ) -> Tensor:
        """Explain each image's prediction, or the classes named by `labels`.

        Args:
            model: in evaluation mode; returns logits (N, classes), or what `apem_fast.Classifier` reads as such.
            images: (N, C, H, W), as the model receives them (normalised, if it expects that), on the model's device.
            labels: (N,) int64; None explains the model's own predictions.
            progress: True for a line on standard error, or a function called as progress(images_done, images_total).

        Returns:
            The attribution, (N, C, H, W), signed, of the images' dtype and device; `relevance_map` makes a relevance
            map of it.

        Raises:
            TypeError: an argument of the wrong type or dtype.
            ValueError: a wrong shape, NaN or infinity, a model in training mode or one that does not return logits
                (`apem_fast.Classifier` says how to read other outputs).
            NotFiniteError: a RuntimeError; the attribution came out with NaN or infinity.
        """
        return self._in_batches(self.attribute, model, images, labels, progress)

    def _in_batches(
        self,
        attribute: Callable[[nn.Module, Tensor, Tensor], Tensor],
        model: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        progress: Callable[[int, int], None] | bool | None,
    ) -> Tensor:
        """Does what `__call__` does around `attribute`. Methods with a more detailed result pass another function."""
        progress = shown(progress)
        _check_model(self.name, model)
        _check_images(self.name, images, model)
        _check_labels(self.name, labels, images)
        parts: list[Tensor] = []
        at_once = self.images_at_once(images.device)
        with untouched(images):
            for start in range(0, images.shape[0], at_once):
                chunk = images.detach()[start : start + at_once].clone()
                if labels is not None:
                    chunk_labels = labels[start : start + at_once].clone()
                elif self.needs_model:
                    chunk_labels = _predictions(model, chunk, self.name)
                else:
                    chunk_labels = torch.zeros(chunk.shape[0], dtype=torch.int64, device=chunk.device)
                part = attribute(model, chunk, chunk_labels).detach()
                if not parts and self.needs_model and isinstance(model, nn.Module):  # the method may say more of it
                    _require_repeatable(self.name, model, images, in_batches=self.batch_on(images.device) > 1)
                _check_attribution(self.name, part, chunk)
                parts.append(part.to(images.dtype))
                if progress is not None:
                    progress(start + chunk.shape[0], images.shape[0])
        return torch.cat(parts) if parts else torch.empty_like(images)


@contextlib.contextmanager
def untouched(images: Tensor) -> Iterator[None]:
    """Turns gradients on and autocast off within the block, and makes new tensors beside the images, whatever surrounds
    it; restores torch's random state after it."""
    devices = [images.device] if images.device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        for context in (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices),
            no_autocast(),
        ):
            stack.enter_context(context)
        if torch.get_default_device().type != images.device.type:
            stack.enter_context(images.device)
        yield


def checked_logits(model: nn.Module, images: Tensor, name: str) -> Tensor:
    """The model's logits (N, classes); an error if its output has none."""
    try:
        return logits_of(model, images)
    except ModelOutputError as error:
        raise ModelOutputError(f"{name}: {error}") from None


def explainable_logits(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, labels_are_known: bool = False
) -> Tensor:
    """The checked logits; an error if they have no gradient or not all of the labels.

    Args:
        labels_are_known: whether the labels were checked before: the check makes the host wait for the device.
    """
    logits = checked_logits(model, images, name)
    if not labels_are_known:
        require_known_labels(logits, labels, name)
    if not logits.requires_grad:
        raise ValueError(f"{name}: model must be differentiable (got logits without a gradient)")
    return logits


def require_known_labels(logits: Tensor, labels: Tensor, name: str) -> None:
    outside = labels[(labels < 0) | (labels >= logits.shape[1])]
    if outside.numel():
        raise ValueError(
            f"{name}: labels must lie in [0, {logits.shape[1]}), the model's classes (got {int(outside[0])})"
        )


def require_at_least_one(name: str, argument: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: {argument} must be an integer of at least 1 (got {value!r})")


def require_batch_size(name: str, value: int | None) -> None:
    if value is not None:
        require_at_least_one(name, "batch_size", value)


def _require_repeatable(name: str, model: nn.Module, images: Tensor, in_batches: bool) -> None:
    """Refuses a model whose answer to an image depends on the rest of the batch, since its maps would do so too."""
    try:
        require_repeatable_once(model, images, in_batches=in_batches)
    except ModelOutputError as error:
        raise ModelOutputError(f"{name}: {error}") from None


def _predictions(model: nn.Module, images: Tensor, name: str) -> Tensor:
    with torch.no_grad():
        logits = checked_logits(model, images, name)
    if bool((logits.isnan() | logits.isposinf()).any()):  # the greatest of these would be no prediction
        raise ModelOutputError(
            f"{name}: model must not return NaN or +infinity (got such logits of images without labels)"
        )
    try:
        check_scale(model, logits)
    except ModelOutputError as error:
        raise ModelOutputError(f"{name}: {error}") from None
    return logits.argmax(dim=1)


def _check_model(name: str, model: nn.Module) -> None:
    if not callable(model) or isinstance(model, torch.export.ExportedProgram):
        hint = "; its .module() is one" if isinstance(model, torch.export.ExportedProgram) else ""
        raise TypeError(f"{name}: model must be a torch module (got {type(model).__name__}{hint})")
    training = (
        []
        if is_exported(model)
        else [
            path or "the model itself"
            for path, module in getattr(model, "named_modules", tuple)()
            if getattr(module, "training", False)
        ]
    )
    if training:
        raise ValueError(f"{name}: model must be in evaluation mode: call model.eval() first (training: {training[0]})")


def _check_images(name: str, images: Tensor, model: nn.Module) -> None:
    if not isinstance(images, Tensor):
        way_out = ways_out.of_no_tensor("images", images)
        raise TypeError(f"{name}: images must be a tensor (got {type(images).__name__}){way_out}")
    if came := not_plain(images):
        raise TypeError(f"{name}: images must be {came}")
    if images.dtype not in FLOATING:
        raise TypeError(f"{name}: images must be floating point (got {images.dtype}){ways_out.of_dtype(images)}")
    if images.dim() != 4:
        shape = tuple(images.shape)
        raise ValueError(f"{name}: images must have shape (N, C, H, W) (got {shape}){ways_out.of_images(images)}")
    parameter = next(iter(getattr(model, "parameters", tuple)()), None)
    if parameter is not None and parameter.device != images.device:
        raise ValueError(f"{name}: images must be on the model's device, {parameter.device} (got {images.device})")
    if not images.isfinite().all():
        raise ValueError(f"{name}: images must be finite (got NaN or infinity)")
    weights = next((p for p in getattr(model, "parameters", tuple)() if p.is_floating_point()), None)
    if weights is not None and weights.dtype != images.dtype:
        raise TypeError(
            f"{name}: images must have the dtype of the model's weights, {weights.dtype} (got {images.dtype})"
        )


def _check_labels(name: str, labels: Tensor | None, images: Tensor) -> None:
    if labels is None:
        return
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        came = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        is_tensor = isinstance(labels, Tensor)
        way_out = ways_out.of_labels(labels, len(images)) if is_tensor else ways_out.of_no_tensor("labels", labels)
        raise TypeError(f"{name}: labels must be an int64 tensor (got {came}){way_out}")
    if tuple(labels.shape) != (images.shape[0],):
        raise ValueError(f"{name}: labels must have shape ({images.shape[0]},) (got {tuple(labels.shape)})")
    if labels.device != images.device:
        raise ValueError(f"{name}: labels must be on the device of images, {images.device} (got {labels.device})")


def _check_attribution(name: str, attribution: Tensor, images: Tensor) -> None:
    if attribution.shape != images.shape:
        raise ValueError(f"{name}: attribute must return shape {tuple(images.shape)} (got {tuple(attribution.shape)})")
    if not attribution.isfinite().all():
        raise NotFiniteError(f"{name}: the attribution must be finite (got NaN or infinity)")
