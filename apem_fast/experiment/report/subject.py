"""The run that a page is about, for its sections: rows in the order of the page, and names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas
from markupsafe import Markup

from apem_fast.experiment.report.section import Cell
from apem_fast.experiment.report.sets import TITLES, image_sets
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import BASELINES
from apem_fast.explain.registry import given_method
from apem_fast.relevance import STAGES


def explainer_names(store: RunStore) -> dict[str, str]:
    """The name of each explainer, with its options if two explainers of the run have the same name."""
    names = {key: one["name"] for key, one in store.record["explainers"].items()}
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {
        key: f"{name} ({key.partition(':')[2] or 'default'})" if name in twice else name for key, name in names.items()
    }


def is_baseline(key: str) -> bool:
    return given_method(key).split(":", maxsplit=1)[0] in BASELINES


class Subject:
    """A run and its scored rows.

    Args:
        store: the run.
        rows: its scored rows, see `statistics.scored_rows`.
        seed: of everything that draws at random.
    """

    def __init__(self, store: RunStore, rows: pandas.DataFrame, seed: int):
        self.store, self.seed = store, seed
        self.names = {key: name for key, name in explainer_names(store).items() if key in set(rows["explainer"])}
        self.stages = [stage for stage in STAGES if stage in set(rows["stage"])]
        self.rows = rows.sort_values("stage", key=lambda column: column.map(self.stages.index), kind="stable")
        self.sets = image_sets(self.rows)
        self.main = next(iter(self.sets.values()))  # the papers' figures are of correctly classified images
        self.methods = [key for key in self.names if not is_baseline(key)] or list(self.names)

    def named(self, row: dict[str, Any]) -> tuple[Cell, Cell]:
        """The first two cells of most tables."""
        return self.stage(row["stage"]), Cell(self.names[row["explainer"]])

    def stage(self, name: str) -> Cell:
        """A stage as a cell, which is sorted by its position."""
        return Cell(name, self.stages.index(name), is_name=True)

    def by_set(self, draw: Callable[[pandas.DataFrame], str]) -> tuple[tuple[str, Markup], ...]:
        """A figure for each set of images, with the set's name if there are two."""
        return tuple((TITLES[name], Markup(draw(part))) for name, part in self.sets.items())

    def set_cells(self, name: str) -> tuple[Cell, ...]:
        """The first cell of a table's row, which names the set of images if there are two."""
        return (Cell(TITLES[name]),) if len(self.sets) > 1 else ()

    @property
    def set_columns(self) -> tuple[str, ...]:
        return ("photographs",) if len(self.sets) > 1 else ()
