"""Deletion, insertion and their difference: the output as features are replaced, in either order.

Deletion replaces the most relevant features first (MoRF). Insertion starts with every feature replaced and puts the
most relevant ones back first (Petsiuk et al. 2018, arXiv:1806.07421). Read backwards, insertion replaces the least
relevant first (LeRF), so with the same imputation its curve equals the LeRF curve, point by point. The symmetric
relevance gain is the area under LeRF minus the area under MoRF (Bluecher et al. 2024, arXiv:2401.06654); it depends far
less on the imputation than either area.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, Unpack

import numpy as np
from torch import Tensor, nn

from apem_fast.callers import said_by
from apem_fast.measures.arguments import check_curve
from apem_fast.measures.imputation import filling_of
from apem_fast.measures.removal import Order, Output, RemovalCurve, outputs_while_removing, parts_of, ranks_of
from apem_fast.progress import shown
from apem_fast.results import TableResult, counted
from apem_fast.results.plots import COLOURS, draw_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class CurveOptions(TypedDict, total=False):
    """The options of `deletion`, `insertion` and `relevance_gain`.

    labels: (N,) int64, the classes whose output is recorded; the predictions if not given.
    imputation: what a removed feature becomes: "constant" (0), "blur" or "mean", a number, or a tensor that broadcasts
        to the images; see `apem_fast.measures.imputation`. "blur" if not given.
    steps: the number of (nearly) equal parts in which features are removed; None removes them one by one. 100 if not
        given.
    output: the label's "probability", or its "logit".
    batch_size, progress: as of `selectivity`.
    """

    labels: Tensor | None
    imputation: str | float | Tensor
    steps: int | None
    output: Output
    batch_size: int | None
    progress: Callable[[int, int], None] | None


@dataclass(frozen=True, eq=False, repr=False)
class DeletionResult(RemovalCurve):
    """The output of N images as their most relevant features are replaced. A small area is good."""

    called: ClassVar[str] = "deletion"


@dataclass(frozen=True, eq=False, repr=False)
class InsertionResult(RemovalCurve):
    """The output of N images against the number of their least relevant features that are still replaced.

    A large area is good.
    """

    called: ClassVar[str] = "insertion"


@dataclass(frozen=True, eq=False, repr=False)
class RelevanceGainResult(TableResult):
    """Both curves of N images."""

    deletion: DeletionResult
    insertion: InsertionResult

    @property
    def gain(self) -> Tensor:
        """The area under LeRF minus the area under MoRF: (N,) float64; large is good, 0 is chance."""
        return self.insertion.area - self.deletion.area

    @property
    def probes(self) -> int:
        """Model inputs that were run for each image."""
        return self.deletion.probes + self.insertion.probes

    @property
    def mean(self) -> float:
        """The mean gain over the images."""
        return float(self.gain.mean())

    @property
    def median(self) -> float:
        """The median gain over the images."""
        return float(np.median(self.gain.numpy()))

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """Label, deletion, insertion and their difference."""
        areas = {"deletion": self.deletion.area, "insertion": self.insertion.area, "relevance_gain": self.gain}
        return {"label": self.deletion.labels, **areas}

    def _said(self) -> list[str]:
        return [counted(len(self.gain), "image"), f"mean gain {self.mean:.4g}", f"median {self.median:.4g}"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the output of each image against the share of its features that is replaced, and the means.

        One curve has the most relevant features first, the other the least relevant. Without `ax`, into new axes.
        """
        axes = {"xlabel": "share of the features that is replaced", "ylabel": "output"}
        morf, lerf = self.deletion, self.insertion
        ax = draw_curves(
            ax, morf.removed_share, morf.output, label="most relevant first", colour=COLOURS["epsilon_minus"], **axes
        )
        draw_curves(
            ax, lerf.removed_share, lerf.output, label="least relevant first", colour=COLOURS["epsilon_plus"], **axes
        )
        ax.legend(frameon=False, fontsize="small")
        return ax


@said_by("deletion")
def deletion(model: nn.Module, images: Tensor, relevance: Tensor, **options: Unpack[CurveOptions]) -> DeletionResult:
    """The output as the most relevant features are replaced first: MoRF, Petsiuk et al.'s deletion.

    Each image takes steps + 1 probes.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes).
        images: (N, C, H, W) float32 or float64 as the model receives them.
        relevance: (N, 1, H, W) or (N, C, H, W) of the images' dtype; any scale, only the order counts.
        options: see `CurveOptions`.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    return DeletionResult(*_curve(model, images, relevance, "most", **options))


@said_by("insertion")
def insertion(model: nn.Module, images: Tensor, relevance: Tensor, **options: Unpack[CurveOptions]) -> InsertionResult:
    """The output as the most relevant features are put back first, which is LeRF read backwards.

    Each image takes steps + 1 probes. The arguments and the errors are those of `deletion`.
    """
    return InsertionResult(*_curve(model, images, relevance, "least", **options))


@said_by("relevance_gain")
def relevance_gain(
    model: nn.Module, images: Tensor, relevance: Tensor, **options: Unpack[CurveOptions]
) -> RelevanceGainResult:
    """The symmetric relevance gain: the area under LeRF minus the area under MoRF.

    Each image takes 2 (steps + 1) probes. The arguments and the errors are those of `deletion`.
    """
    return RelevanceGainResult(
        DeletionResult(*_curve(model, images, relevance, "most", **options)),
        InsertionResult(*_curve(model, images, relevance, "least", **options)),
    )


def _curve(
    model: nn.Module,
    images: Tensor,
    relevance: Tensor,
    first: Order,
    *,
    labels: Tensor | None = None,
    imputation: str | float | Tensor = "blur",
    steps: int | None = 100,
    output: Output = "probability",
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    progress = shown(progress)
    steps, batch_size = check_curve(model, images, relevance, labels, steps, output, batch_size)
    filling = filling_of(imputation, images)
    removed = parts_of(relevance[0].numel(), steps)
    outputs, of = outputs_while_removing(
        model,
        images,
        ranks_of(relevance, first),
        removed,
        filling,
        labels=labels,
        output=output,
        batch_size=batch_size,
        progress=progress,
    )
    return removed, outputs, of
