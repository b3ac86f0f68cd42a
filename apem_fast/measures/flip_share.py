"""The flip fraction: the least share of an image's most relevant features whose removal changes the prediction.

Removal in the order of relevance is a ray of its own kind: the probe at step k replaces the first k parts. So the
engine of the metric finds its first flip, with the same batches and answers of record. But it scans every share:
margins are so rough here, where features go one after the other, that a search which skips some misses one first
change in eight on a real network, and saves less than half of the probes (docs/measures.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast import validation
from apem_fast.callers import said_by
from apem_fast.measures.imputation import filling_of
from apem_fast.measures.removal import ranks_of
from apem_fast.metric import Evaluator
from apem_fast.options import EngineOptions, Options, documented
from apem_fast.probing.engine import Progress, find_flips
from apem_fast.probing.rays import Rays
from apem_fast.results import TableResult, censored, counted
from apem_fast.results.plots import draw_values
from apem_fast.search import Exhaustive, Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEARCHING = ("search", "batch_size", "compile", "record")  # the options that have a meaning here
PARTS = 200  # half a per cent each


@dataclass(frozen=True, eq=False, repr=False)
class FlipFractionResult(TableResult):
    """The flip fraction of N images (all tensors are (N,), on the CPU)."""

    fraction: Tensor  # float64, the least share; 1 where no share changes the prediction
    flipped: Tensor  # bool; False: censored, not even with everything replaced
    labels: Tensor  # int64: the predictions
    probes: Tensor  # int64: model inputs that were run
    parts: int  # of the grid: every fraction is a multiple of 1 / parts

    @property
    def mean(self) -> float:
        """The mean over the images, censored ones as 1."""
        return float(self.fraction.mean())

    @property
    def median(self) -> float:
        """The median over the images, censored ones as 1."""
        return float(np.median(self.fraction.numpy()))

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Label, flip_fraction, flipped and probes."""
        return {"label": self.labels, "flip_fraction": self.fraction, "flipped": self.flipped, "probes": self.probes}

    def _said(self) -> list[str]:
        numbers = f"mean fraction {self.mean:.4g}", f"median {self.median:.4g}", censored(self.flipped)
        return [counted(len(self.labels), "image"), *numbers, f"parts={self.parts}"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The fraction of each image, a hollow dot where no share changes it; into new matplotlib axes if none are
        given."""
        what = "least share whose removal changes the prediction"
        return draw_values(ax, self.fraction, self.flipped, xlabel=what, label="flip fraction")


@dataclass(frozen=True)
class RemovalRays(Rays):
    """Rays along which features are replaced: the relevance is a map's ranks, and epsilon counts the parts that are
    gone."""

    filling: Tensor | None = None  # (N, C, H, W): what replaces the features of each image
    parts: int = PARTS

    def inputs(
        self, norm: Tensor, image: Tensor, map: Tensor, irrelevance: Tensor, epsilon: Tensor, level: Tensor
    ) -> Tensor:
        assert self.filling is not None
        features = self.relevance[0].numel()
        until = torch.div(epsilon.round().long() * features, self.parts, rounding_mode="floor")
        return torch.where(self.relevance[map] < until[:, None, None, None], self.filling[image], self.images[image])

    def alone(self, ray: int) -> Self:
        assert self.filling is not None
        one = super().alone(ray)
        return replace(one, filling=self.filling[self.image[ray]][None].contiguous())


@documented(SEARCHING)
@said_by("flip_fraction")
def flip_fraction(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    *,
    imputation: str | float | Tensor = "blur",
    parts: int = PARTS,
    labels: Tensor | None = None,
    progress: Progress | None = None,
    **options: Unpack[EngineOptions],
) -> FlipFractionResult:
    """The least k / parts for which replacing the most relevant floor(k features / parts) changes the prediction.

    Low is good: the map names what the decision rests on. Every share is tried in turn, whatever the search is called:
    some 20 to 60 probes an image, `parts` where nothing changes the prediction. A policy object of
    `apem_fast.search` is taken as it is, and may pass over a change that comes back within a few parts.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) of the images' dtype; any scale, only the order counts.
        imputation: what a removed feature becomes: "constant" (0), "blur" or "mean", a number, or a tensor that
            broadcasts to the images.
        parts: of the grid of shares.
        labels: (N,) int64, the predictions, if known; they are checked.
        progress: called with (images decided, images in all, probes so far).
        options: see `apem_fast.options.Options`.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    parts = validation.whole("parts", parts)
    Options.of(SEARCHING, **options)
    evaluator = Evaluator(model, images, labels=labels, **options)
    return flip_fractions(evaluator, relevance, imputation=imputation, parts=parts, progress=progress)


def flip_fractions(
    evaluator: Evaluator,
    relevance: Tensor,
    *,
    imputation: str | float | Tensor = "blur",
    parts: int = PARTS,
    progress: Progress | None = None,
) -> FlipFractionResult:
    """The second half of `flip_fraction`, for an evaluator that is at hand: many maps of the same images share it."""
    images = evaluator.images
    validation.map_of_images("relevance", relevance, images)
    parts = min(parts, relevance[0].numel())
    filling = filling_of(imputation, images)
    # Ranks as exact whole numbers of float64: float32 would do up to 2^24 features.
    rays = evaluator.rays(ranks_of(relevance).double(), np.arange(len(images)))
    of_relevance = rays.only(np.arange(0, len(rays), 2))
    columns = {field.name: getattr(of_relevance, field.name) for field in fields(of_relevance)}
    none = np.zeros(len(images))
    rays = RemovalRays(
        **(columns | {"slope": none, "norm": none + 1, "lower": None, "upper": None}),
        filling=filling,
        parts=parts,
    )
    with evaluator.probing(rays, "float32") as prober:
        flips = find_flips(prober, _policy(evaluator), step=1.0, last_step=parts, progress=progress)
    return FlipFractionResult(
        torch.from_numpy(flips.step / parts),
        torch.from_numpy(flips.flipped),
        evaluator.labels.cpu(),
        torch.from_numpy(flips.probes),
        parts,
    )


def _policy(evaluator: Evaluator) -> Search:
    """A policy that the evaluator was given; the scan in place of a named one, which is made for smoother margins."""
    return Exhaustive() if isinstance(evaluator.options.search, str) else evaluator.options.policy
