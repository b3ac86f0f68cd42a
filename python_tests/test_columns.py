"""The columns of a run's tables stand in one schema: what is written has them, and docs/columns.md lists them."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest

from apem_fast.experiment.report.summary import COLUMNS, ON_TERMINAL
from apem_fast.experiment.run import tables
from apem_fast.experiment.run.columns import MEASURES
from apem_fast.metric import ApemResult
from apem_fast.metric.normalised import ShuffledEpsilons

PAGE = Path(__file__).parents[1] / "docs" / "columns.md"
SECTIONS = {
    "`results.csv`": tables.RESULTS,
    "With `--shuffles`": tables.SHUFFLED,
    "With `--measures`": (*map(tables.column_of, MEASURES), *tables.OF_MEASURES),
    "With `--curves`": tables.curves_of(MEASURES),
    "Images": tables.IMAGES,
    "`left-out.csv`": tables.LEFT_OUT,
    "`table.csv`": COLUMNS,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_lists_each_column_of_the_schema_and_no_other(section):
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{one.name}` | {one.kind} | {one.meaning} |" for one in SECTIONS[section]]


def test_the_page_has_no_other_section():
    headings = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert len(headings) == len(SECTIONS)


@pytest.mark.parametrize("columns", SECTIONS.values())
def test_an_empty_row_fits_the_schema(columns):
    assert len({one.name for one in columns}) == len(columns)
    table = pyarrow.Table.from_pylist([tables.empty_row(columns)], schema=tables.schema_of(columns))
    assert table.schema.names == [one.name for one in columns] and table.num_rows == 1


def test_what_the_search_fills_in_are_columns():
    names = {one.name for one in tables.RESULTS}
    assert set(tables.OF_SEARCH) < names
    assert all(hasattr(ApemResult, one) or one in ApemResult.__annotations__ for one in tables.OF_SEARCH)
    shuffled = [f"{tables.SHUFFLE}{name}" for name in tables.OF_SHUFFLES]
    assert [*shuffled, "score_norm", "shuffled_seconds"] == [one.name for one in tables.SHUFFLED]
    assert set(tables.OF_SHUFFLES) < set(ShuffledEpsilons.__annotations__)


def test_a_terminal_shows_columns_with_headings():
    assert all(one.heading for one in ON_TERMINAL) and len({one.heading for one in ON_TERMINAL}) == len(ON_TERMINAL)
