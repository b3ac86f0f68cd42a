"""Which images stand together: the papers show correctly classified and misclassified ones apart (P1 V-A, P2 5.3)."""

from __future__ import annotations

import pandas

SETS = ("correct", "misclassified", "all")
FEWEST = 4  # a box of fewer says nothing
TITLES = {"correct": "correctly classified", "misclassified": "misclassified", "all": ""}


def in_set(rows: pandas.DataFrame, name: str) -> pandas.DataFrame:
    """The rows of "correct" or "misclassified" images, or of all whose truth is known."""
    known = rows["correct"].astype("boolean")
    chosen = {"correct": known, "misclassified": ~known, "all": known.notna()}[name]
    return rows[chosen.fillna(False).astype(bool)]


def image_sets(rows: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """The rows by the sets to show them in: correct and misclassified apart, the former first as in the papers,
    where the truth of every image is known and there are at least four of each kind; otherwise "all" together.

    Args:
        rows: with a column correct, boolean, NA where no truth is known.
    """
    apart = {name: in_set(rows, name) for name in SETS[:2]}
    if rows["correct"].isna().any() or any(part["image"].nunique() < FEWEST for part in apart.values()):
        return {"all": rows}
    return apart


def with_truth(results: pandas.DataFrame, images: pandas.DataFrame) -> pandas.DataFrame:
    """A run's rows with the column correct of their images: boolean, NA where no truth is known."""
    known = pandas.DataFrame({"image": images["image"]})
    known["correct"] = images["correct"].astype("boolean") if "correct" in images else pandas.NA
    return results.merge(known.astype({"correct": "boolean"}), on="image", how="left")
