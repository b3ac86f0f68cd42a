"""Region perturbation: the output as blocks of an image are replaced by noise, the most relevant blocks first.

Samek et al. 2017, "Evaluating the visualization of what a deep neural network has learned" (arXiv:1509.06321). P1 and
P2 name it as the measure closest to APEM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from apem_fast import validation
from apem_fast.callers import said_by, sentence
from apem_fast.measures.arguments import check_curve
from apem_fast.measures.imputation import checked_baseline
from apem_fast.measures.removal import Output, outputs_while_removing
from apem_fast.progress import shown
from apem_fast.results import TableResult, counted
from apem_fast.results.plots import draw_curves
from apem_fast.seeding import generators_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEYOND = 2**62  # the rank of pixels that belong to no block, which are never replaced


@dataclass(frozen=True, eq=False, repr=False)
class RegionPerturbationResult(TableResult):
    """The output of N images as their blocks are replaced by noise (tensors are on the CPU)."""

    output: Tensor  # (N, repeats, L + 1) float64, with 0 to L blocks replaced
    labels: Tensor  # (N,) int64: the classes whose output it is

    @property
    def area_over_curve(self) -> Tensor:
        """AOPC, the mean fall of the output over the L + 1 points: (N,) float64; large is good."""
        return (self.output[:, :, :1] - self.output).mean(dim=(1, 2))

    @property
    def probes(self) -> int:
        """Model inputs that were run for each image."""
        return self.output[0].numel()

    @property
    def mean(self) -> float:
        """The mean over the images."""
        return float(self.area_over_curve.mean())

    @property
    def median(self) -> float:
        """The median over the images."""
        return float(np.median(self.area_over_curve.numpy()))

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Label and region_perturbation, the area over the curve."""
        return {"label": self.labels, "region_perturbation": self.area_over_curve}

    def _said(self) -> list[str]:
        numbers = f"mean area over the curve {self.mean:.4g}", f"median {self.median:.4g}"
        return [counted(len(self.labels), "image"), *numbers, counted(self.probes, "probe") + " an image"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the output of each image against the number of replaced blocks, and the mean. Without `ax`, into new
        axes."""
        curves = self.output.mean(dim=1)
        return draw_curves(ax, range(curves.shape[1]), curves, xlabel="blocks turned into noise", ylabel="output")


@said_by("region_perturbation")
def region_perturbation(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    labels: Tensor | None = None,
    size: int = 9,
    steps: int = 100,
    repeats: int = 10,
    low: float | Tensor | None = None,
    high: float | Tensor | None = None,
    output: Output = "probability",
    seed: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
) -> RegionPerturbationResult:
    """AOPC: the area over the curve of the output, as the most relevant blocks are replaced by uniform noise.

    The image is cut into blocks from its upper left corner; a remainder at the lower and the right edge is never
    replaced. A block's relevance is the sum over its pixels. Noise is drawn from a generator seeded with the image and
    `seed`, so it does not depend on the batch or the device. Each image takes repeats (steps + 1) probes.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) of the images' dtype; any scale, only sums over blocks count.
        labels: (N,) int64, the classes whose output is recorded; None takes the predictions.
        size: the side of a block, in pixels; 9 in Samek et al.
        steps: L, how many blocks are replaced, or all if there are fewer; 100 in Samek et al.
        repeats: how often the noise is drawn; 10 in Samek et al.
        low, high: the range of the noise, in the model's input space: numbers, or tensors that broadcast to the images;
            None takes the least and the greatest value of each channel of the image itself.
        output: the label's "probability", or its "logit".
        seed: of the noise, any integer.
        batch_size, progress: as of `selectivity`.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    progress = shown(progress)
    _, batch_size = check_curve(model, images, relevance, labels, steps, output, batch_size)
    steps, size, repeats = (validation.whole(*one) for one in (("steps", steps), ("size", size), ("repeats", repeats)))
    if size > min(images.shape[2:]):
        raise ValueError(sentence(f"size must be at most the images' side {min(images.shape[2:])} (got {size})"))
    images = images.detach()
    least = images.amin(dim=(2, 3), keepdim=True) if low is None else low
    most = images.amax(dim=(2, 3), keepdim=True) if high is None else high
    bottom, top = checked_baseline(least, images, "low"), checked_baseline(most, images, "high")
    if bool((bottom > top).any()):
        raise ValueError(sentence("low must be at most high (got a greater one)"))
    rank, blocks = block_ranks(relevance.detach(), size)
    gone = torch.arange(min(steps, blocks) + 1, device="cpu")
    curves = []
    for k in range(repeats):

        def report(done: int, total: int, before: int = k) -> None:
            if progress is not None:
                progress(before * total + done, repeats * total)

        filling = torch.stack([_noise(image, seed, k) for image in images]) * (top - bottom) + bottom
        curve, labels = outputs_while_removing(
            model,
            images,
            rank,
            gone,
            filling,
            labels=labels,
            output=output,
            batch_size=batch_size,
            progress=report,
        )
        curves.append(curve)
    assert labels is not None  # there is at least one repetition
    return RegionPerturbationResult(torch.stack(curves, dim=1), labels)


def block_ranks(relevance: Tensor, size: int) -> tuple[Tensor, int]:
    """The rank of each pixel's block, (N, 1, H, W) int64, 0 for the most relevant; and the number of blocks."""
    height, width = (side - side % size for side in relevance.shape[2:])
    whole = relevance.double().sum(dim=1, keepdim=True)[:, :, :height, :width]
    sums = functional.avg_pool2d(whole, size) * size**2
    order = sums.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    of_block = torch.empty_like(order).scatter_(1, order, places).view(sums.shape)
    rank = torch.full((len(relevance), 1, *relevance.shape[2:]), BEYOND, device=relevance.device, dtype=torch.int64)
    rank[:, :, :height, :width] = of_block.repeat_interleave(size, dim=2).repeat_interleave(size, dim=3)
    return rank, order.shape[1]


def _noise(image: Tensor, seed: int, repeat: int) -> Tensor:
    """Uniform noise (C, H, W) in [0, 1), of the image's dtype."""
    drawn = torch.rand(image.shape, generator=generators_for(image)(seed, repeat), dtype=torch.float64, device="cpu")
    return drawn.to(image.dtype).to(image.device)
