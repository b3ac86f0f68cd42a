"""The network's output as parts of an image are removed in a given order: the basis of several measures.

A part is everything of the same rank; it is removed by replacing it with a filling. Every point of every image's curve
is one input of the model, and the points of all images share batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast.callers import sentence
from apem_fast.results import TableResult, counted
from apem_fast.results.plots import draw_curves
from apem_fast.running.batching import in_batches
from apem_fast.running.clean import predictions_of
from apem_fast.running.outputs import ModelOutputError, logits_of
from apem_fast.running.undisturbed import undisturbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Output = Literal["probability", "logit"]
Order = Literal["most", "least"]

BATCH_SIZE = {"cpu": 8, "cuda": 128}  # a CPU's caches hold few images, so larger batches are slower there


@dataclass(frozen=True, eq=False, repr=False)
class RemovalCurve(TableResult):
    """The output of N images as their features are removed (tensors are on the CPU)."""

    removed: Tensor  # (K + 1,) int64: how many features are removed, ascending from 0
    output: Tensor  # (N, K + 1) float64: the output then
    labels: Tensor  # (N,) int64: the classes whose output it is

    called: ClassVar[str] = "area"

    @property
    def removed_share(self) -> Tensor:
        """The share of the features that is removed: (K + 1,) float64, from 0 to 1."""
        return self.removed.double() / self.removed[-1]

    @property
    def area(self) -> Tensor:
        """The area under the output against the removed share: (N,) float64."""
        return torch.trapezoid(self.output, self.removed_share, dim=1)

    @property
    def probes(self) -> int:
        """Model inputs that were run for each image."""
        return len(self.removed)

    @property
    def mean(self) -> float:
        """The mean area over the images."""
        return float(self.area.mean())

    @property
    def median(self) -> float:
        """The median area, the mean of the middle two for an even number of images."""
        return float(np.median(self.area.numpy()))

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Label, the area under the name of the measure, the output before and after all removals."""
        ends = {"output_before": self.output[:, 0], "output_after": self.output[:, -1]}
        return {"label": self.labels, self.called: self.area, **ends}

    def _said(self) -> list[str]:
        areas = f"mean {self.called} {self.mean:.4g}", f"median {self.median:.4g}"
        return [counted(len(self.labels), "image"), *areas, counted(self.probes, "probe") + " an image"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the output of each image against the removed share, and the mean. Without `ax`, into new axes."""
        axes = {"xlabel": "share of the features that is removed", "ylabel": "output"}
        return draw_curves(ax, self.removed_share, self.output, label=self.called, **axes)


def ranks_of(relevance: Tensor, first: Order = "most") -> Tensor:
    """The rank of each feature, (N, 1 or C, H, W) int64; 0 is removed first.

    Of features with equal relevance the one earlier in memory counts as more relevant, so that one order is exactly the
    reverse of the other.
    """
    order = relevance.detach().flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, places).view(relevance.shape)
    return ranks if first == "most" else relevance[0].numel() - 1 - ranks


def parts_of(features: int, steps: int | None) -> Tensor:
    """How many features are removed at each point: (K + 1,) int64 on the CPU.

    They go from 0 to `features` in `steps` (nearly) equal parts, or one by one for None.
    """
    parts = features if steps is None else min(steps, features)
    return torch.arange(parts + 1, device="cpu") * features // parts


def outputs_while_removing(
    model: nn.Module,
    images: Tensor,
    rank: Tensor,
    gone: Tensor,
    filling: Tensor,
    *,
    labels: Tensor | None = None,
    output: Output = "probability",
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The outputs (N, K + 1) float64, and the labels (N,), both on the CPU.

    Args:
        model: in eval mode; it returns logits (N, classes).
        images: (N, C, H, W).
        rank: (N, 1 or C, H, W) int64.
        gone: (K + 1,) int64: at each point of the curve, everything of a lower rank is replaced.
        filling: (N, C, H, W), the replacement.
        labels: the classes whose output is recorded; None takes the predictions.
        output: the label's "probability" or "logit".
        batch_size: inputs in a batch, halved if memory runs out; None takes 8 on a CPU and 128 on a GPU.
        progress: called as progress(inputs run, inputs in all).
    """
    images, points = images.detach(), len(gone)
    until_of = gone.to(images.device)

    def inputs(first: int, last: int) -> Tensor:
        number = torch.arange(first, last, device=images.device)
        image, until = number // points, until_of[number % points]
        left = torch.where(rank[image] < until[:, None, None, None], filling[image], images[image])
        return left.contiguous(memory_format=torch.channels_last)  # convolutions are fastest so

    with undisturbed(model, images), torch.no_grad():
        if labels is None:
            labels = predictions_of(model, images)
        of_input = labels.to(images.device).repeat_interleave(points)
        values: list[Tensor] = []
        done, total = 0, len(images) * points
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
    if not bool(finite):  # read once at the end, so that a GPU need not wait after every batch
        raise ModelOutputError(
            "model must return finite logits (got NaN or infinity for an image with features removed)"
        )
    return torch.cat(values).view(len(images), points).cpu(), labels.detach().cpu()


def _check_labels(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(sentence(f"labels must lie in [0, {classes}) (got {int(wrong[0])})"))


def _output(logits: Tensor, labels: Tensor, output: Output) -> Tensor:
    values = logits.double()
    values = values.softmax(dim=1) if output == "probability" else values
    return values.gather(1, labels[:, None])[:, 0]
