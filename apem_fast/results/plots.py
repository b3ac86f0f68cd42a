"""Drawing results with matplotlib: epsilons of images, and curves over images.

Every function draws into the axes that it is given, or into new ones, and returns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from apem_fast.extras import extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

COLOURS = {"score": "#5b6ee1", "epsilon_minus": "#d9822b", "epsilon_plus": "#2a9d8f"}
GREY = "#9aa0ae"
MOST_LINES = 100
LABELLED = 30  # images that get a row with a number each; more are sorted by their score


def axes_or_new(ax: Axes | None) -> Axes:
    """The axes to draw into.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    with extra("experiment", "plot"):
        import matplotlib.pyplot as plt

    return plt.subplots(layout="constrained")[1] if ax is None else ax


def draw_ticks(ax: Axes | None, epsilons: Sequence[tuple[str, str, Tensor]], *, order: Tensor) -> Axes:
    """A tick in each image's row at each of these (label, colour, values), for `draw_epsilons` to be drawn over."""
    ax = axes_or_new(ax)
    rows = _rows(order)
    for label, colour, values in epsilons:
        ax.scatter(values.numpy(), rows, 60 if len(rows) <= LABELLED else 12, color=colour, marker="|", label=label)
    return ax


def _rows(order: Tensor) -> np.ndarray:
    """The row of each image: a few images in their own order, many sorted by `order`, the greatest on top."""
    rows = np.arange(len(order))
    if len(order) > LABELLED:
        rows[np.argsort(-order.numpy(), kind="stable")] = np.arange(len(order))
    return rows


def draw_epsilons(
    ax: Axes | None,
    epsilons: Sequence[tuple[str, str, Tensor, Tensor]],
    *,
    order: Tensor,
    xlabel: str = "ε, in l1 of the model's input",
    log: bool = True,
) -> Axes:
    """One row for each image: a dot at each of its epsilons, hollow if it is censored, and a line between them.

    Args:
        ax: to draw into.
        epsilons: label, colour, values (N,) and whether each is a flip (N,).
        order: the values by which many images are sorted, the greatest on top.
        xlabel: of the axis.
        log: whether its scale is logarithmic.
    """
    ax = axes_or_new(ax)
    rows, count = _rows(order), len(order)
    ax.set_ylabel("image" if count <= LABELLED else "images, sorted")
    ax.set_yticks(rows if count <= LABELLED else [])
    size = 36 if count <= LABELLED else 8
    if len(epsilons) > 1:
        values = np.stack([values.numpy() for _, _, values, _ in epsilons])
        ax.hlines(rows, values.min(0), values.max(0), color=GREY, alpha=0.5, linewidth=1, zorder=1)
    for label, colour, numbers, flipped in epsilons:
        at, values = flipped.numpy(), numbers.numpy()
        ax.scatter(values[at], rows[at], size, color=colour, label=label, zorder=2)
        ax.scatter(values[~at], rows[~at], size, facecolor="none", edgecolor=colour, zorder=2)
    if any(not bool(flipped.all()) for _, _, _, flipped in epsilons):
        ax.scatter([], [], 36, facecolor="none", edgecolor=GREY, label="censored: more than that")
    if log:
        ax.set_xscale("log")
    ax.set_xlabel(xlabel)
    ax.invert_yaxis()
    ax.legend(frameon=False, fontsize="small")
    return quiet(ax, "x")


def draw_curves(
    ax: Axes | None,
    x: ArrayLike,
    curves: ArrayLike,
    *,
    xlabel: str,
    ylabel: str,
    label: str = "mean",
    colour: str = COLOURS["score"],
) -> Axes:
    """A thin line for each of the first MOST_LINES images, and a thick one for their mean.

    Args:
        ax: to draw into.
        x: (K,).
        curves: (N, K); the mean leaves NaN out.
        xlabel, ylabel: of the axes.
        label: of the mean.
        colour: of all lines.
    """
    ax = axes_or_new(ax)
    x, curves = np.asarray(x), np.asarray(curves)
    single = len(curves) == 1
    if not single:
        ax.plot(x, curves[:MOST_LINES].T, color=colour, alpha=0.25, linewidth=0.8)
    known = ~np.isnan(curves).all(axis=0)
    ax.plot(x[known], np.nanmean(curves[:, known], axis=0), color=colour, linewidth=2, label=label)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    return quiet(ax, "both")


def draw_values(ax: Axes | None, values: Tensor, exact: Tensor, *, xlabel: str, label: str, log: bool = False) -> Axes:
    """One dot for each image, hollow if its value is not exact."""
    return draw_epsilons(ax, [(label, COLOURS["score"], values, exact)], order=values, xlabel=xlabel, log=log)


def quiet(ax: Axes, grid: str) -> Axes:
    """The axes without a box and with a faint grid."""
    ax.grid(axis=grid, alpha=0.2, linewidth=0.6)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
