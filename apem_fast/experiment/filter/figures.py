"""Maps before and after the filter, side by side, in the layout of P1 Figures 6 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from apem_fast.experiment.filter.filtered import FilteredPhotograph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("photograph", "map", "filtered", "map × image", "filtered × image", "score as values go")
PANEL = 1.9  # inches


def before_and_after(done: Sequence[FilteredPhotograph]) -> Figure:
    """One row a photograph: it, its map, the filtered map, both multiplied by the photograph (P1 Figure 7), and the
    score over the share of the map that is gone, where the filter stopped marked.

    A map and its filtered one share their scale, so what is left looks as it did. Both are shown by the square root of
    their values: on a linear scale the least values, which are what the filter takes, would all look black.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL * len(COLUMNS) + 0.2, (PANEL + 0.32) * len(done) + 0.3), layout="constrained")
    axes = figure.subplots(len(done), len(COLUMNS), squeeze=False)
    for row, one in zip(axes, done):
        before, after = one.relevance, one.filtered
        products = [times_image(values, one.pixels) for values in (before, after)]
        brightest = products[0].max().clamp(min=1e-12)
        panels = (one.pixels, before, after, *(product / brightest for product in products))
        for axis, panel in zip(row, panels):
            _show(axis, panel, photograph=panel is one.pixels)
        _draw_curve(row[-1], one)
        score_before, score_after, share = (one.numbers[n] for n in ("score_before", "score_after", "removed_share"))
        row[0].set_xlabel(f"{one.subject} ({one.prediction})", fontsize=8)
        row[1].set_xlabel(f"score {score_before:g}", fontsize=8)
        row[2].set_xlabel(f"score {score_after:g}, {100 * share:.0f} % of it gone", fontsize=8)
    for axis, title in zip(axes[0], COLUMNS):
        axis.set_title(title, fontsize=9)
    return figure


def _draw_curve(axis: Axes, one: FilteredPhotograph) -> None:
    gone, score = (100 * one.curve[0]).tolist(), one.curve[1].tolist()
    stop = 100 * one.numbers["removed_share"]
    axis.step([*gone, max(gone[-1], stop)], [*score, score[-1]], where="post", color="0.45", linewidth=1)
    axis.plot([stop], [one.numbers["score_after"]], "o", color="tab:red", markersize=4)
    axis.axvline(stop, color="tab:red", linewidth=0.7, linestyle=":")
    axis.set_xlim(0, max(5.0, min(100.0, 1.15 * max(gone[-1], stop))))
    axis.set_xlabel("% of the map gone; • where it stops", fontsize=7)
    axis.tick_params(labelsize=6)
    axis.set_box_aspect(0.8)


def times_image(relevance: Tensor, pixels: Tensor) -> Tensor:
    """The map (1 or C, H, W) times the photograph (C, H, W), colours summed: (1, H, W) (P1 section IV-A)."""
    return (relevance * pixels).sum(dim=0, keepdim=True)


def _show(axis: Axes, values: Tensor, photograph: bool) -> None:
    if photograph:
        axis.imshow(values.permute(1, 2, 0).clamp(0, 1).numpy())
    else:
        axis.imshow(values.mean(dim=0).clamp(0, 1).sqrt().numpy(), cmap="magma", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
