"""An explanation method that computes in float64, so that its map is the same on every processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apem_fast.explain.explainer import Explainer, NotFiniteError
from apem_fast.running.batching import is_out_of_memory
from apem_fast.running.depthwise import fast_depthwise
from apem_fast.running.record import in_float64
from apem_fast.running.repeated import share_what_was_seen


@dataclass(frozen=True)
class InFloat64(Explainer):
    """Runs another method on a float64 copy of the model, and rounds its attribution once to the images' dtype.

    In float32 the last digits of a map depend on the processor's instructions and libraries, and an epsilon near the
    edge of a grid step may change by one step (docs/same-answers.md has figures). A float64 convolution takes some
    three times as long as a float32 one, or more, depending on the processor. On the command line:
    `gradient:dtype=float64`.

    Args:
        explainer: any method whose options are not modules of a particular model: these are not in the copy.
    """

    explainer: Explainer

    def __post_init__(self) -> None:
        if not isinstance(self.explainer, Explainer):
            raise TypeError(f"InFloat64: explainer must be an Explainer (got {type(self.explainer).__name__})")
        if not self.explainer.needs_model:
            raise ValueError(f"InFloat64: explainer must use the model (got {self.explainer.name}, which does not)")

    @property
    def name(self) -> str:  # type: ignore[override]  # that of the method within
        return self.explainer.name

    @property
    def cost_per_image(self) -> float:
        return 3 * self.explainer.cost_per_image

    @property
    def options(self) -> dict[str, Any]:
        return {**self.explainer.options, "dtype": "float64"}

    def batch_on(self, device: torch.device) -> int:
        return self.explainer.batch_on(device)

    def images_at_once(self, device: torch.device) -> int:
        return self.explainer.images_at_once(device)

    def for_images(self, names: Sequence[str]) -> Explainer:
        return InFloat64(self.explainer.for_images(names))

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] | bool | None = None,
    ) -> Tensor:
        """See `Explainer`. With `labels=None`, the predictions are those of the float64 copy.

        Raises:
            RuntimeError: the model does not compute in float64.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point() or not isinstance(model, nn.Module):
            return self.explainer(model, images, labels, progress=progress)  # raises an error that says what is wrong
        try:
            copy = in_float64(model)
            share_what_was_seen(model, copy)
            with fast_depthwise(images.device):
                attribution = self.explainer(copy, images.double(), labels, progress=progress)
            share_what_was_seen(model, copy)
        except RuntimeError as error:
            if isinstance(error, NotFiniteError) or is_out_of_memory(error):
                raise
            raise RuntimeError(
                f"{self.name}: dtype=float64 needs a model that computes in float64 (got: {str(error).splitlines()[0]})"
            ) from error
        return attribution.to(images.dtype)

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return self.explainer.attribute(model, images, labels)
