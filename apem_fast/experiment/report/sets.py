"""The sets of images that are shown separately: correctly classified and misclassified ones (P1 V-A, P2 5.3)."""

from __future__ import annotations

import pandas

SETS = ("correct", "misclassified", "all")
FEWEST = 4  # the least number of images for a boxplot
TITLES = {"correct": "correctly classified", "misclassified": "misclassified", "all": ""}


def in_set(rows: pandas.DataFrame, name: str) -> pandas.DataFrame:
    """The rows of "correct" or "misclassified" images, or of all images of known class."""
    known = rows["correct"].astype("boolean")
    chosen = {"correct": known, "misclassified": ~known, "all": known.notna()}[name]
    return rows[chosen.fillna(False).astype(bool)]


def image_sets(rows: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """The rows of each set to show: "correct" and "misclassified", in the papers' order, or "all" in one set.

    The sets are separate if the class of every image is known and each set has at least four images.

    Args:
        rows: with a column correct, boolean, NA if the class is unknown.
    """
    apart = {name: in_set(rows, name) for name in SETS[:2]}
    if rows["correct"].isna().any() or any(part["image"].nunique() < FEWEST for part in apart.values()):
        return {"all": rows}
    return apart


def with_truth(results: pandas.DataFrame, images: pandas.DataFrame) -> pandas.DataFrame:
    """A run's rows with the column correct of their images: boolean, NA if the class is unknown."""
    known = pandas.DataFrame({"image": images["image"]})
    known["correct"] = images["correct"].astype("boolean") if "correct" in images else pandas.NA
    return results.merge(known.astype({"correct": "boolean"}), on="image", how="left")
