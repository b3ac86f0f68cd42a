"""A check that images and weights are still what they were when labels and gradients were computed of them."""

from __future__ import annotations

from torch import Tensor, nn

from apem_fast.callers import sentence

Versions = tuple[object, list[object]]


def versions_of(of_model: nn.Module, images: Tensor) -> Versions:
    """What tells whether images or parameters are written into, or parameters replaced. A write through `.data` is not
    seen."""
    return _version(images), [_version(parameter) for parameter in of_model.parameters()]


def _version(tensor: Tensor) -> object:
    return None if tensor.is_inference() else (id(tensor), tensor._version)


def unchanged(before: Versions, of_model: nn.Module, images: Tensor) -> None:
    """Raises unless the images' values and the model's weights are those of before."""
    for name, had, then, now in zip(
        ("images", "model"), ("values that they", "weights that it"), before, versions_of(of_model, images)
    ):
        if now != then:
            raise ValueError(
                sentence(
                    f"{name} must have the {had} had when the evaluator was made (written into since); make another "
                    "one, or go on with evaluator.on(images)"
                )
            )
