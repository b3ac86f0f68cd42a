"""Explanation selectivity: how fast the output falls when the most relevant features go first (P2 Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.extras import extra
from apem_fast.measures.arguments import check_classes, check_model_and_images
from apem_fast.running.batching import in_batches
from apem_fast.running.clean import logits_of
from apem_fast.running.outputs import ModelOutputError
from apem_fast.running.undisturbed import undisturbed

if TYPE_CHECKING:
    import pandas

Output = Literal["probability", "logit"]

BATCH_SIZE = {"cpu": 8, "cuda": 128}  # a CPU's caches hold few images; larger batches are slower there


@dataclass(frozen=True)
class SelectivityResult:
    """The output of N images while their features are removed (tensors are on the CPU)."""

    removed: Tensor  # (K + 1,) int64: how many features are gone, from 0 to all
    output: Tensor  # (N, K + 1) float64: what is left of the evidence
    labels: Tensor  # (N,) int64: the classes whose output it is

    @property
    def removed_share(self) -> Tensor:
        """(K + 1,) float64, from 0 to 1."""
        return self.removed.double() / self.removed[-1]

    @property
    def area(self) -> Tensor:
        """(N,) float64: the area under the output against the share that is removed; low is selective."""
        return torch.trapezoid(self.output, self.removed_share, dim=1)

    @property
    def mean(self) -> float:
        """The mean area over the images."""
        return float(self.area.mean())

    @property
    def median(self) -> float:
        """The median area, the mean of the middle two for an even number of images."""
        return float(np.median(self.area.numpy()))

    def to_dataframe(self) -> pandas.DataFrame:
        """One row an image: label, selectivity (the area), the output with every feature and with none."""
        with extra("experiment", "to_dataframe"):
            import pandas

        return pandas.DataFrame(
            {
                "label": self.labels.numpy(),
                "selectivity": self.area.numpy(),
                "output_before": self.output[:, 0].numpy(),
                "output_after": self.output[:, -1].numpy(),
            }
        )


@said_by("selectivity")
def selectivity(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    labels: Tensor | None = None,
    steps: int | None = 100,
    output: Output = "probability",
    baseline: float | Tensor = 0.0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SelectivityResult:
    """Records f(x), removes the feature with the highest relevance, and so on until all are gone (P2 Algorithm 1).

    A feature is what has one value in the map: a pixel with all its channels for (N, 1, H, W), one channel of a pixel
    for (N, C, H, W). Of features with equal relevance the one earlier in memory goes first.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) of the images' dtype; any scale, only the order counts.
        labels: (N,) int64, the classes whose output is recorded; None takes the predictions.
        steps: in how many parts of (nearly) equal size the features go, at most one each; None removes them one by
            one, as the algorithm says, at one model input a feature.
        output: what f is: the "probability" of the label, with an area in [0, 1], or its "logit".
        baseline: what a removed feature becomes, in the model's input space: a number, or a tensor that broadcasts to
            the images. 0 is the algorithm's x - {x_i}, and the mean colour where images are normalised.
        batch_size: how many images a batch has; None takes 8 on a CPU and 128 elsewhere. Running out of
            memory halves it.
        progress: called as progress(inputs run, inputs in all).

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    check_model_and_images(model, images)
    validation.map_of_images("relevance", relevance, images)
    check_classes(labels, images)
    batch_size = validation.whole_or_none("batch_size", batch_size)
    if steps is not None:
        steps = validation.whole("steps", steps)
    if output not in ("probability", "logit"):
        raise ValueError(sentence(f'output must be "probability" or "logit" (got {output!r})'))
    filling = _checked_baseline(baseline, images)
    images = images.detach()
    count, features = len(images), relevance[0].numel()
    parts = features if steps is None else min(steps, features)
    removed = torch.arange(parts + 1, device="cpu") * features // parts
    rank = _ranks(relevance.detach())
    gone = removed.to(images.device)

    def inputs(first: int, last: int) -> Tensor:
        image = torch.arange(first, last, device=images.device) // (parts + 1)
        until = gone[torch.arange(first, last, device=images.device) % (parts + 1)]
        left = torch.where(rank[image] < until[:, None, None, None], filling[image], images[image])
        return left.contiguous(memory_format=torch.channels_last)  # convolutions are fastest so

    with undisturbed(model, images), torch.no_grad():
        if labels is None:
            labels = torch.cat([logits_of(model, image) for image in images.split(1)]).argmax(dim=1)
        of_input = labels.to(images.device).repeat_interleave(parts + 1)
        values: list[Tensor] = []
        done, total = 0, count * (parts + 1)
        size = batch_size or BATCH_SIZE.get(images.device.type, BATCH_SIZE["cuda"])
        finite = torch.ones((), dtype=torch.bool, device=images.device)
        for _, logits in in_batches(lambda first, last: logits_of(model, inputs(first, last)), total, size):
            if not values:
                _check_labels(labels, logits.shape[1])
            finite &= logits.isfinite().all()
            values.append(_output(logits, of_input[done : done + len(logits)], output))
            done += len(logits)
            if progress is not None:
                progress(done, total)
    if not bool(finite):  # read once: a GPU is not to wait after every batch
        raise ModelOutputError(
            "model must return finite logits (got NaN or infinity for an image with features removed)"
        )
    return SelectivityResult(removed, torch.cat(values).view(count, parts + 1).cpu(), labels.detach().cpu())


def _check_labels(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"selectivity: labels must lie in [0, {classes}) (got {int(wrong[0])})")


def _output(logits: Tensor, labels: Tensor, output: Output) -> Tensor:
    values = logits.double()
    values = values.softmax(dim=1) if output == "probability" else values
    return values.gather(1, labels[:, None])[:, 0]


def _ranks(relevance: Tensor) -> Tensor:
    """(N, 1 or C, H, W) int64: 0 for the feature that goes first."""
    order = relevance.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(relevance.shape)


def _checked_baseline(baseline: object, images: Tensor) -> Tensor:
    baseline = validation.plain(baseline)
    if isinstance(baseline, bool) or not isinstance(baseline, (int, float, Tensor)):
        raise TypeError(sentence(f"baseline must be a number or a torch.Tensor (got {type(baseline).__name__})"))
    filling = torch.as_tensor(baseline, dtype=images.dtype, device=images.device).detach()
    if not bool(filling.isfinite().all()):
        raise ValueError(sentence("baseline must be finite (got NaN or infinity)"))
    try:
        return filling.expand_as(images)
    except RuntimeError:
        raise ValueError(
            sentence(f"baseline must broadcast to images {tuple(images.shape)} (got {tuple(filling.shape)})")
        ) from None
