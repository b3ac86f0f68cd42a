"""The report page: sections of figures and tables, rendered to one HTML file that needs nothing else, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, select_autoescape
from torch import Tensor

from apem_fast.files.pictures import data_uri, png_of, svg_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Plot", "RankerSection", "RankerTable", "Row", "Tile", "write_page"]


@dataclass(frozen=True)
class Tile:
    """An image (1 or 3, H, W) in [0, 1] with a few words under it."""

    image: Tensor
    caption: str = ""

    @property
    def source(self) -> str:
        """A PNG as a data URI; the page enlarges it without smoothing."""
        return data_uri(png_of(self.image), "png")


@dataclass(frozen=True)
class Row:
    """Tiles side by side, with a heading on their left."""

    heading: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class RankerTable:
    """The first column names the rows; the others are set flush right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """A matplotlib figure, kept as SVG, and what it shows in words."""

    svg: str
    caption: str

    @classmethod
    def of(cls, figure: Figure, caption: str) -> Plot:
        return cls(svg_of(figure, bbox_inches="tight"), caption)


@dataclass(frozen=True)
class RankerSection:
    """One question and its answer: figures and tables in the order of `content`, and the numbers behind them."""

    title: str
    text: str
    content: Sequence[Row | RankerTable | Plot]
    numbers: dict[str, Any] = field(default_factory=dict)


def write_page(
    path: Path,
    title: str,
    lead: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[RankerSection],
    banner: str = "",
) -> Path:
    """Writes `path` and, beside it, the numbers of all sections as JSON. A banner warns above everything else."""
    templates = Environment(
        loader=PackageLoader("apem_fast.siamese.report", "templates"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.tests["row"] = lambda item: isinstance(item, Row)
    templates.tests["table"] = lambda item: isinstance(item, RankerTable)
    page = templates.get_template("page.html.jinja").render(
        title=title, lead=lead, facts=facts, sections=sections, banner=banner
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    numbers = {section.title: section.numbers for section in sections if section.numbers}
    path.with_suffix(".json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return path
