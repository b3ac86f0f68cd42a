"""Maps before and after the filter, side by side, in the layout of P1 Figures 6 and 7."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from apem_fast.experiment.filter.filtered import FilteredPhotograph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 1.9  # inches


def before_and_after(done: Sequence[FilteredPhotograph]) -> Figure:
    """One row for each photograph and method: the photograph, and maps before and after the filter at each stage.

    Beside each pair of maps is the score over the share of the map that is 0, with a mark where the filter stopped (P1
    Figure 7, P2 Figure 4.9). A map and its filtered map share their scale, so what remains looks as before. Both are
    shown as the square root of their values: on a linear scale the least values, which the filter removes, would all
    look black.
    """
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(one.stage for one in done))
    by_row: dict[tuple[str, str, int], dict[str, FilteredPhotograph]] = {}
    seen: Counter[tuple[str, str, str]] = Counter()
    for one in done:  # two files of the same name are two photographs
        key = one.name, one.explainer, one.stage
        by_row.setdefault((*key[:2], seen[key]), {})[one.stage] = one
        seen[key] += 1
    titles = ["photograph", *(title for stage in stages for title in (stage, "filtered", "score as values go"))]
    figure = Figure(figsize=(PANEL * len(titles) + 0.2, (PANEL + 0.32) * len(by_row) + 0.3), layout="constrained")
    axes = figure.subplots(len(by_row), len(titles), squeeze=False)
    for row, of_row in zip(axes, by_row.values()):
        first = next(iter(of_row.values()))
        _show(row[0], first.pixels, photograph=True)
        row[0].set_xlabel(f"{first.subject} ({first.prediction})", fontsize=8)
        row[0].set_ylabel(first.method, fontsize=9)
        for number, stage in enumerate(stages):
            before, after, curve = row[3 * number + 1 : 3 * number + 4]
            if stage not in of_row:
                for axis in (before, after, curve):
                    axis.set_axis_off()
                continue
            _show_filtered(before, after, of_row[stage])
            _draw_curve(curve, of_row[stage])
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    return figure


def _show_filtered(before: Axes, after: Axes, one: FilteredPhotograph) -> None:
    _show(before, one.relevance, photograph=False)
    _show(after, one.filtered, photograph=False)
    before.set_xlabel(f"score {one.numbers['score_before']:g}", fontsize=8)
    gone = f"{100 * one.numbers['removed_share']:.0f} % of it gone"
    after.set_xlabel(f"score {one.numbers['score_after']:g}, {gone}", fontsize=8)


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


def _show(axis: Axes, values: Tensor, photograph: bool) -> None:
    if photograph:
        axis.imshow(values.permute(1, 2, 0).clamp(0, 1).numpy())
    else:
        axis.imshow(values.mean(dim=0).clamp(0, 1).sqrt().numpy(), cmap="magma", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
