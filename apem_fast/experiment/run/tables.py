"""The tables of a run: the name, type and meaning of each column.

Parquet shards, and the data frames read from them, have these columns in this order. `docs/columns.md` lists them, and
those of the summary (`experiment/report/summary.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow

from apem_fast.experiment.run.columns import MEASURES

_ARROW = {
    "text": pyarrow.string(),
    "number": pyarrow.float64(),
    "numbers": pyarrow.list_(pyarrow.float64()),
    "integer": pyarrow.int64(),
    "truth": pyarrow.bool_(),
}

_NOTHING: dict[str, Any] = {"text": "", "number": float("nan"), "numbers": [], "integer": 0, "truth": False}


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    kind: str  # "text", "number" (float64), "numbers" (of them), "integer" (int64) or "truth" (or missing)
    meaning: str


IMAGES = (
    Column("image", "text", "what the image is called in the run"),
    Column("subject", "text", "what it shows, in words, where that is known"),
    Column("source", "text", "where it comes from: its path, or the package that ships it"),
    Column("label", "integer", "the class that the network predicts, which is the one explained"),
    Column("prediction", "text", "that class's name"),
    Column("confidence", "number", "its softmax probability, in [0, 1]"),
    Column("correct", "truth", "whether the prediction is what the image shows; missing where that is not known"),
    Column("loss", "number", "cross entropy of what the image shows; NaN where that is not known"),
    Column("truth", "text", "what the image shows, as the network names it; empty where that is not known"),
    Column("truth_label", "integer", "that class's index; -1 where it is not known"),
    Column("digest", "text", "hash of the pixels that the network sees"),
    Column("dropped", "text", "what of the file the network does not see: transparency, later frames; else empty"),
)

RESULTS = (
    Column("image", "text", "what the image is called in the run"),
    Column("explainer", "text", "the explainer's key: its name and the options that are not usual"),
    Column("stage", "text", "how the attribution became a map: 3-channel, 1-channel, times-grey or times-image"),
    Column("epsilon_minus", "number", "least ε that changes the prediction along the relevance; else max_epsilon"),
    Column("epsilon_plus", "number", "least ε that changes it along the irrelevance; else max_epsilon"),
    Column("score", "number", "APEM of the image: epsilon_plus - epsilon_minus"),
    Column("flipped_minus", "truth", "whether the prediction changes along the relevance; false: censored"),
    Column("flipped_plus", "truth", "whether it changes along the irrelevance; false: censored"),
    Column("probes", "integer", "model inputs that the search asked for, both rays together"),
    Column("scan_probes", "integer", "model inputs that a scan of every grid point up to both flips takes"),
    Column("attribution_seconds", "number", "this row's share of the time that explaining took"),
    Column("flag", "text", "why the map has no score; empty where it has one"),
    Column("record", "text", "what decided margins close to 0: float64 or float32; empty where there is no score"),
    Column("search_seconds", "number", "this row's share of the time that searching took, by its probes"),
)
"""A row for each image, explainer and stage."""

OF_SEARCH = ("epsilon_minus", "epsilon_plus", "score", "flipped_minus", "flipped_plus", "probes")
"""The columns that are fields of an `ApemResult`."""

OF_SHUFFLES = ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus", "probes")
"""The fields of `ShuffledEpsilons`; their columns' names have a prefix."""

SHUFFLE = "shuffled_"

SHUFFLED = (
    Column("shuffled_epsilon_minus", "number", "least epsilon_minus of the shuffled maps"),
    Column("shuffled_epsilon_plus", "number", "least epsilon_plus of the shuffled maps"),
    Column("shuffled_flipped_minus", "truth", "whether any shuffled map's relevance ray changes the prediction"),
    Column("shuffled_flipped_plus", "truth", "whether any shuffled map's irrelevance ray changes it"),
    Column("shuffled_probes", "integer", "model inputs that the shuffled maps' search asked for"),
    Column(
        "score_norm",
        "number",
        "normalised score: epsilon_plus / shuffled_epsilon_plus - epsilon_minus / shuffled_epsilon_minus",
    ),
    Column("shuffled_seconds", "number", "this row's share of the time that the shuffled maps took"),
)
"""Further columns of a run with shuffles."""

OF_MEASURES = (
    Column("measure_probes", "integer", "model inputs that all of these measures took, explanations not counted"),
    Column("measure_seconds", "number", "this row's share of the time that all of these measures took"),
)
"""Further columns of a run with measures, after the column of each measure."""

CURVE = "_curve"
"""The suffix of columns with a measure's curve, which shards have and CSV files do not."""

LEFT_OUT = (
    Column("path", "text", "the file that did not take part"),
    Column("reason", "text", "why"),
)


def names_of(columns: Iterable[Column]) -> tuple[str, ...]:
    """The names of these columns."""
    return tuple(one.name for one in columns)


def schema_of(columns: Iterable[Column]) -> pyarrow.Schema:
    """The Parquet schema of these columns."""
    return pyarrow.schema({one.name: _ARROW[one.kind] for one in columns})


def columns_of_results(shuffles: int, measures: Iterable[str], curves: bool = False) -> tuple[Column, ...]:
    """The columns of a run's results with these options."""
    measures = tuple(measures)
    of_measures = (*map(column_of, measures), *(OF_MEASURES if measures else ()))
    return (*RESULTS, *(SHUFFLED if shuffles else ()), *of_measures, *(curves_of(measures) if curves else ()))


def curves_of(measures: Iterable[str]) -> tuple[Column, ...]:
    """The columns of the curves that a run with these measures can keep."""
    return tuple(
        Column(
            f"{name}{CURVE}",
            "numbers",
            f"the output at equal steps from none replaced to all, whose area is {name}; empty where there is none",
        )
        for name in measures
        if MEASURES[name].curve is not None
    )


def column_of(measure: str) -> Column:
    """The column of this measure."""
    good = "low" if MEASURES[measure].better == "lower" else "high"
    return Column(measure, "number", f"{MEASURES[measure].meaning}; {good} is good")


def empty_row(columns: Iterable[Column]) -> dict[str, Any]:
    """A row without values: NaN, 0, false and empty texts."""
    return {one.name: _NOTHING[one.kind] for one in columns}
