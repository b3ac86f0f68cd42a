"""The filter's results: the filtered maps, and the score of each map over its levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from apem_fast.filter.stopping import Stop
from apem_fast.results import TableResult, counted
from apem_fast.results.plots import axes_or_new, quiet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class ScoreCurve(TableResult):
    """The score of one map over its levels (all tensors are (K,), on the CPU).

    It is a step function: at each row after the first an epsilon changes, and between rows nothing does. If a change
    stopped the filter, that change is the last row, or with `patience` a row at most so many levels before it.
    """

    level: Tensor  # int64, ascending from 0, which is the original map
    removed: Tensor  # int64: positive values that are 0 at this level
    removed_share: Tensor  # float64: of the map's l1 norm
    epsilon_minus: Tensor  # float64, on the relevance ray
    epsilon_plus: Tensor  # float64, on the irrelevance ray
    flipped_minus: Tensor  # bool; False: censored
    flipped_plus: Tensor  # bool; False: censored

    @property
    def score(self) -> Tensor:
        """epsilon_plus - epsilon_minus, (K,) float64."""
        return self.epsilon_plus - self.epsilon_minus

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        """One row for each change of an epsilon."""
        names = "level removed removed_share epsilon_minus epsilon_plus score flipped_minus flipped_plus".split()
        return {name: getattr(self, name) for name in names}

    def _said(self) -> list[str]:
        low, high = float(self.score.min()), float(self.score.max())
        return [counted(len(self.level), "level"), f"scores from {low:.5g} to {high:.5g}"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the score against the share of the map that is 0. Without `ax`, into new axes."""
        ax = axes_or_new(ax)
        ax.step(self.removed_share.numpy(), self.score.numpy(), where="post", linewidth=1.2)
        ax.set_xlabel("share of the map's l1 norm that is 0")
        ax.set_ylabel("score = ε⁺ − ε⁻")
        return quiet(ax, "both")


@dataclass(frozen=True, eq=False, repr=False)
class FilterResult(TableResult):
    """The filtered maps of N images (all tensors but `relevance` are (N,), on the CPU)."""

    relevance: Tensor  # of the shape of the original maps: the last maps before the score drops
    score_before: Tensor  # float64
    score_after: Tensor  # float64
    levels: Tensor  # int64: levels in all, or steps where `levels` grouped them
    levels_removed: Tensor  # int64
    removed: Tensor  # int64: pixels (in a map with channels, values) that were positive and are 0 now
    removed_share: Tensor  # float64: of the map's l1 norm
    probes: Tensor  # int64: model inputs that were run; a gradient counts as three
    stopped: tuple[Stop, ...]  # why the filter stopped at each map
    fell: Tensor  # float64: how far the score fell at the level that was not taken; NaN if it did not drop
    deciding_margin: Tensor  # float64: of the probe that made it fall; a margin near 0 makes the drop doubtful
    curves: tuple[ScoreCurve, ...]
    labels: Tensor  # int64: the predictions that were explained
    record: str  # "float64" or "float32": what decided where margins are close to 0

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the filter stopped at each map: a sentence with numbers."""
        numbers = zip(self.stopped, self.fell.tolist(), self.deciding_margin.tolist())
        return tuple(_reason(*one) for one in numbers)

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        columns = {name.replace("labels", "label"): getattr(self, name) for name in COLUMNS}
        return {**columns, "stopped": self.reasons}

    def _said(self) -> list[str]:
        share = float(self.removed_share.mean()) if len(self.removed_share) else math.nan
        before, after = float(self.score_before.mean()), float(self.score_after.mean())
        return [
            counted(len(self.labels), "image"),
            f"mean score {before:.5g} before and {after:.5g} after",
            f"{100 * share:.3g} % of the maps' l1 norm removed on average",
            f"record={self.record}",
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the score of each map as its least values become 0, with a dot where the filter stopped.

        Without `ax`, into new axes.
        """
        ax = axes_or_new(ax)
        for curve in self.curves:
            curve.plot(ax)
        ax.scatter(self.removed_share.numpy(), self.score_after.numpy(), 24, color="black", zorder=3, label="kept")
        ax.legend(frameon=False, fontsize="small")
        return ax


COLUMNS = ("labels", "score_before", "score_after", "levels", "levels_removed", "removed", "removed_share", "probes")


def _reason(stop: Stop, fell: float, margin: float) -> str:
    if stop is not Stop.DROPPED:
        return stop.value
    decided = "" if math.isnan(margin) else f", decided by a margin of {margin:.2g}"
    return f"The score drops by {fell:g} at the next level{decided}."
