"""The parts of a page's sections: cells, tables, pictures, and numbers as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A cell's text, and its value for sorting (None: the text). Names are aligned left, numbers right."""

    text: str
    value: float | None = None
    is_name: bool = False


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by any column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A small picture inside the page.

    Args:
        source: a data URI.
        caption: the text below it, which is also its alternative text.
    """

    source: str
    caption: str


Pictures: TypeAlias = tuple[tuple[str, tuple[tuple[Picture, ...], ...]], ...]
"""Groups, each with a title and rows of pictures."""


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Args:
        key: its anchor.
        title: its heading.
        reading: one sentence or two on what it shows and how to read it.
        finding: its result for this run; "" if there is none.
        figures: (title, SVG), the first open and the others folded.
        caption: below the first figure.
        tables: shown below, the first open, each further one folded under its heading.
        pictures: (title, rows of pictures), below the figures.
    """

    key: str
    title: str
    reading: str
    finding: str = ""
    figures: tuple[tuple[str, Markup], ...] = ()
    caption: str = ""
    tables: tuple[tuple[str, Table], ...] = field(default=())
    pictures: Pictures = field(default=())


def number(value: float, digits: int = 1, mark: str = "") -> str:
    """A number as text: with thousands separators, a real minus sign, and – for NaN."""
    # Adding 0 turns a negative zero, which rounding leaves of small numbers, into 0.
    return "–" if np.isnan(value) else mark + f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def count(value: int) -> Cell:
    return Cell(f"{value:,}", value)


def probability(value: float) -> str:
    if np.isnan(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.0f} %"
