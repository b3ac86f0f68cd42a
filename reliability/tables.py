"""What a part found, as a table for the terminal and for docs/reliability.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """The result of one part.

    Args:
        title, text: what was done, and what is wanted.
        columns, rows: the figures.
        bad: how many of them must not be: the command fails unless it is 0.
    """

    title: str
    text: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    bad: int

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", self.text, "", _line(self.columns), _line(["---"] * len(self.columns))]
        return "\n".join([*lines, *map(_line, self.rows)]) + "\n"


def _line(cells: Any) -> str:
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells) + " |"
