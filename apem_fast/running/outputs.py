"""Reads a model's output as the logits of a classifier, (N, classes), with at least two classes.

These are recognised: a tensor (N, classes); a record with `.logits`, a dictionary with "logits", or a tuple with the
logits first, as libraries return them; and one logit for each image, (N,) or (N, 1), from a binary classifier. For any
other output use `Classifier(model, output=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from apem_fast.callers import warn


class ModelOutputError(ValueError):
    """The model's output is not that of a classifier."""


class Classifier(nn.Module):
    """A model and a function that reads its output; it can be used wherever a model can.

    `af.Classifier(detector, output=lambda boxes: boxes["scores"])`, and `af.Classifier(model, output=torch.logit)` for
    one that ends in a sigmoid.

    Args:
        model: in evaluation mode.
        output: a function that makes logits (N, classes), or one logit for each image, of the model's output. It must
            be differentiable, and each image's logits must depend on that image alone. One logit z stands for two
            classes with logits -z / 2 and z / 2: the prediction is class 1 if z > 0, and the margin is the absolute
            value of z.

    The model receives a copy of its input, so that a model which writes into its input can be used.
    """

    def __init__(self, model: nn.Module, output: Callable[[object], object] | None = None):
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"Classifier: model must be a torch.nn.Module (got {type(model).__name__})")
        if output is not None and not callable(output):
            raise TypeError(f"Classifier: output must be callable (got {type(output).__name__})")
        self.model, self.output = model, output
        self.training = getattr(model, "training", False)

    def forward(self, images: Tensor) -> Tensor:
        answer = self.model(images.clone())  # which the model may write into
        return as_logits(answer if self.output is None else self.output(answer), len(images))


def as_logits(output: object, images: int) -> Tensor:
    """The logits in a model's output for so many images.

    Raises:
        ModelOutputError: no logits are recognised.
    """
    found = _tensor_in(output)
    if found is not None and found.shape in ((images,), (images, 1)):
        half = found.reshape(images, 1) / 2
        return torch.cat([-half, half], dim=1)
    if found is None or found.dim() != 2 or not found.shape[1] or len(found) != images or not found.is_floating_point():
        came = _described(output) if found is None else f"{_dtype_of(found)}shape {tuple(found.shape)}"
        raise ModelOutputError(
            f"model must return logits of shape ({images}, classes) with at least 2 classes, or one logit an image "
            f"(got {came}); Classifier(model, output=...) says where they are"
        )
    return found


def logits_of(model: Callable[[Tensor], object], inputs: Tensor) -> Tensor:
    """The model's logits of these inputs, (N, classes).

    Raises:
        ModelOutputError: no logits are recognised in its output, or the model writes into its input: the images would
            then be changed, and every later answer would be about other images.
    """
    before = None if inputs.is_inference() else inputs._version
    try:
        output = model(inputs)
    except RuntimeError as error:
        # What a gradient is taken of cannot be written into: torch says so in terms of its own.
        if inputs.requires_grad and inputs.is_leaf and _writes_into_its_input(model, inputs):
            raise ModelOutputError(WRITES) from None
        if _looks_channels_last(inputs) and not isinstance(error, torch.OutOfMemoryError):
            raise ModelOutputError(
                f"images must have shape (N, C, H, W) (got {tuple(inputs.shape)}, which the model does not take); "
                "images.permute(0, 3, 1, 2) puts the channels first"
            ) from error
        raise
    if before is not None and inputs._version != before:
        raise ModelOutputError(WRITES)
    return as_logits(output, len(inputs))


WRITES = (
    "model must not write into its input (its forward works in place on it, as x.sub_(mean) does, or a first layer "
    "with inplace=True); Classifier(model) hands it a copy"
)


def _looks_channels_last(images: Tensor) -> bool:
    """Whether the last dimension is as long as a picture has channels, and the second is not."""
    return images.dim() == 4 and images.shape[3] in (1, 3, 4) and images.shape[1] > 4


def _writes_into_its_input(model: Callable[[Tensor], object], inputs: Tensor) -> bool:
    given = inputs.detach().clone()
    before = given._version
    with suppress(Exception), torch.no_grad():
        model(given)
    return given._version != before


def is_exported(model: nn.Module) -> bool:
    """Whether torch.export made it: its mode was fixed then, so its `training` attribute means nothing."""
    return isinstance(model, torch.fx.GraphModule) and "eval" in vars(model)


def _tensor_in(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    return logits if isinstance(logits, Tensor) else None


def _described(output: object) -> str:
    if isinstance(output, Mapping):
        return "a dictionary of " + (", ".join(map(repr, output)) or "nothing")
    return type(output).__name__


def _dtype_of(tensor: Tensor) -> str:
    return "" if tensor.is_floating_point() else f"{tensor.dtype} of "


FEW = 4  # images of whose single logits it may be chance that all lie in [0, 1]


def check_scale(model: nn.Module, logits: Tensor) -> None:
    """Logits of unperturbed images that look like probabilities, unless `Classifier` was told what they are.

    Warns:
        UserWarning: rows that lie in [0, 1] and sum to 1, or one value for each of a few images.

    Raises:
        ModelOutputError: one value for each of several images, all in [0, 1]: after a sigmoid class 1 would be
            predicted everywhere, and no perturbation would change it.
    """
    values = logits.detach()
    if not len(values) or (isinstance(model, Classifier) and model.output is not None):
        return
    one = values[:, 1:2] * 2
    if values.shape[1] == 2 and bool((values[:, 0] == -values[:, 1]).all()):
        if not bool(((one >= 0) & (one <= 1)).all()):
            return
        said = (
            "model must return logits (got one value in [0, 1] for every image, as a sigmoid gives); "
            "Classifier(model, output=torch.logit) turns probabilities back into logits"
        )
        if len(values) >= FEW:
            raise ModelOutputError(said)
        warn(said)
        return
    within = bool(((values >= 0) & (values <= 1)).all())
    if within and bool(((values.double().sum(dim=1) - 1).abs() < 1e-3).all()):
        warn(
            "model returns rows that lie in [0, 1] and sum to 1, which look like probabilities: explanations and "
            "scores are meant for logits, and differ; leave the softmax out, or use "
            "Classifier(model, output=torch.log)"
        )
