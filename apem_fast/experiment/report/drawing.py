"""The style of a page's figures: SVG in the page's text colour, light or dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from apem_fast.files.pictures import svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour, so no other element has this colour
TITLES = {
    "score": "score = ε⁺ − ε⁻",
    "epsilon_minus": "ε⁻ along the relevance",
    "epsilon_plus": "ε⁺ along the irrelevance",
}
METHODS = ("#5b6ee1", "#d9822b", "#2a9d8f", "#c8553d", "#9b6dc6", "#3f96c9", "#b3923a", "#d06a9c")
"""The colours of explainers in a figure, in order; all are readable on white and on near-black."""
VERDICTS = {"better": "#2a9d8f", "equal": "#9aa0ae", "worse": "#d9822b", "undecided": "#9aa0ae44"}
ON_BARS = "#14161a"  # letters on them: white ones would have a contrast of 3

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "apem_fast",
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@contextmanager
def page_style() -> Iterator[None]:
    """Figures that are made within the block have the page's style."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure of rows x columns axes, each `width` x `height` inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + 0.9, height * rows + 0.6), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def quiet(axis: Axes, grid: Literal["both", "x", "y"] = "y") -> None:
    """The axes without a box and with a faint grid."""
    axis.grid(axis=grid, color=INK, alpha=0.12, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_alpha(0.4)


def inline_svg(figure: Figure) -> str:
    """The drawing alone: as wide as its container, in the page's text colour, without metadata."""
    svg = svg_of(figure).replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    # Its width is limited, so that text is not enlarged if few panels share the page's width.
    (points,) = re.findall(r' width="([\d.]+)pt"', head)
    return re.sub(r' (width|height)="[^"]*"', "", head) + f' style="max-width: {points}pt">' + rest
