"""The flip fraction: the least share of an image's most relevant features whose removal changes the prediction.

Removing features in the order of their relevance is a special ray: the probe at step k replaces the first k parts. So
the metric's engine finds its first flip, with the same batches and answers of record. Here it scans every share. As
features are removed one after the other, margins are so rough that a search that skips shares missed the first change
of one map in eight on a real network, and saved less than half of the probes (docs/measures.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Unpack

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
from apem_fast.progress import shown
from apem_fast.results import TableResult, censored, counted
from apem_fast.results.plots import draw_values
from apem_fast.search import Exhaustive, Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEARCHING = ("search", "batch_size", "compile", "record")  # the engine's options that this measure takes
PARTS = 200  # of half a per cent each


@dataclass(frozen=True, eq=False, repr=False)
class FlipFractionResult(TableResult):
    """The flip fraction of N images (all tensors are (N,), on the CPU)."""

    fraction: Tensor  # float64, the least share; 1 if no share changes the prediction
    flipped: Tensor  # bool; False: censored, the prediction is the same even with everything replaced
    labels: Tensor  # int64: the predictions
    probes: Tensor  # int64: model inputs that were run
    parts: int  # of the grid: every fraction is a multiple of 1 / parts

    @property
    def mean(self) -> float:
        """The mean over the images, in which censored ones count as 1."""
        return float(self.fraction.mean())

    @property
    def median(self) -> float:
        """The median over the images, in which censored ones count as 1."""
        return float(np.median(self.fraction.numpy()))

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Label, flip_fraction, flipped and probes."""
        return {"label": self.labels, "flip_fraction": self.fraction, "flipped": self.flipped, "probes": self.probes}

    def _said(self) -> list[str]:
        numbers = f"mean fraction {self.mean:.4g}", f"median {self.median:.4g}", censored(self.flipped)
        return [counted(len(self.labels), "image"), *numbers, f"parts={self.parts}"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the fraction of each image, with a hollow dot if it is censored. Without `ax`, into new axes."""
        what = "least share whose removal changes the prediction"
        return draw_values(ax, self.fraction, self.flipped, xlabel=what, label="flip fraction")


@dataclass(frozen=True)
class RemovalRays(Rays):
    """Rays along which features are replaced: the relevance holds a map's ranks, and epsilon counts the parts."""

    filling: Tensor | None = None  # (N, C, H, W): what replaces the features of each image
    parts: int = PARTS

    def inputs(
        self, norm: Tensor, image: Tensor, map: Tensor, irrelevance: Tensor, epsilon: Tensor, level: Tensor
    ) -> Tensor:
        assert self.filling is not None
        features = self.relevance[0].numel()
        until = torch.div(epsilon.round().long() * features, self.parts, rounding_mode="floor")
        return torch.where(self.relevance[map] < until[:, None, None, None], self.filling[image], self.images[image])


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
    progress: Progress | bool | None = None,
    **options: Unpack[EngineOptions],
) -> FlipFractionResult:
    """The least k / parts for which replacing the most relevant floor(k features / parts) changes the prediction.

    Low is good: the map names the features that the decision depends on. Every share is tried in turn, also if `search`
    names another search: some 20 to 60 probes for each image, or `parts` if nothing changes the prediction. A policy
    object of `apem_fast.search` is used as it is, and may miss a change that is undone within a few parts.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) of the images' dtype; any scale, only the order counts.
        imputation: what a removed feature becomes: "constant" (0), "blur" or "mean", a number, or a tensor that
            broadcasts to the images.
        parts: how many shares are tried at most: multiples of 1 / parts.
        labels: (N,) int64, the predictions, if known; an error if they are not the model's.
        progress: True for a line on standard error, or a function called with (images decided, images in all, probes
            so far).
        options: see `apem_fast.options.Options`.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    progress = shown(progress)
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
    """The second half of `flip_fraction`, for an evaluator that exists: many maps of its images can share it."""
    images = evaluator.images
    validation.map_of_images("relevance", relevance, images)
    parts = min(parts, relevance[0].numel())
    filling = filling_of(imputation, images)
    # Ranks are whole numbers in float64, which holds them exactly; float32 would only up to 2^24 features.
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


def _policy(evaluator: Evaluator) -> Search[Any]:
    """The evaluator's policy if it is an object; for a name the scan, since named searches expect smoother margins."""
    return Exhaustive() if isinstance(evaluator.options.search, str) else evaluator.options.policy
