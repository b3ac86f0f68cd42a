"""The numbers that P1 and P2 publish, with a run's beside them, in the papers' layouts.

P1 is "Assessing the Reliability of Visual Explanations of Deep Models with Adversarial Perturbations", P2 the
dissertation behind it, "Assessing the Reliability of Visual Explanations of Deep Models through Adversarial
Perturbation". Both used VGG-16 on 5,000 correctly classified and 5,000 misclassified images of ILSVRC2012; a run on
another network or on other images has scores on another scale, and only order and pattern can be compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas

from apem_fast.experiment.report.section import number
from apem_fast.experiment.report.sets import in_set
from apem_fast.experiment.report.statistics import (
    by_correctness,
    centres,
    exceptions,
    has_shuffles,
    loss_correlation,
    shuffled,
)
from apem_fast.explain import explainer_from, imported_by
from apem_fast.relevance import STAGES, USUAL_STAGES

METHODS = {
    "gradient": "Gradient",
    "smooth-grad": "Smooth Grad",
    "lrp": "LRP",
    "guided-backprop": "Guided Bp",
    "grad-cam": "Grad-CAM",
    "guided-grad-cam": "Guided Grad-CAM",
}
"""The papers' names of the methods by our names, in the order of the papers' tables."""
CONFIDENCE = "Confidence"
SIGNIFICANT = 0.01  # the papers' dagger

# P1 Table I: median at the last stage, VGG and ResNet.
MEDIAN_BY_NETWORK = {
    "gradient": (81.00, 62.00),
    "smooth-grad": (16.00, 15.00),
    "lrp": (41.00, None),
    "guided-backprop": (43.00, 28.00),
    "grad-cam": (20.00, 21.00),
    "guided-grad-cam": (31.00, 19.00),
}
# P1 Table II (its first three rows are P2 Table 4.4): average at the three stages, then median.
BY_STAGE = {
    "gradient": (231.76, 176.86, 127.79, 137, 105, 81),
    "smooth-grad": (93.40, 74.61, 44.38, 41, 28, 16),
    "lrp": (101.65, 93.93, 66.07, 59, 51, 41),
    "guided-backprop": (118.65, 103.09, 78.07, 63, 53, 43),
    "grad-cam": (100.86, 100.86, 42.25, 41, 41, 20),
    "guided-grad-cam": (83.00, 69.95, 37.79, 51, 42, 31),
}
# P1 Table III, P2 Table 5.2: average, correct and misclassified, then median. P1 heads the averages "Loss".
BY_CORRECTNESS = {
    "gradient": (127.79, 43.58, 81, 25),
    "smooth-grad": (44.38, 12.65, 16, 4),
    "lrp": (66.07, 20.34, 41, 11),
}
# P1 Table IV, P2 Table 5.3: correlation with the loss on correct, misclassified and all images; True: significant.
LOSS_CORRELATION = {
    "gradient": ((-0.827, True), (0.069, True), (-0.543, True)),
    "smooth-grad": ((-0.470, True), (-0.025, False), (-0.349, True)),
    "lrp": ((-0.602, True), (0.001, False), (-0.446, True)),
    CONFIDENCE: ((-1.000, True), (-0.121, True), (-0.697, True)),
}
# P2 Table 5.1: APEM_norm at the three stages.
NORM = {"gradient": (1.11, 0.85, 0.66), "smooth-grad": (0.39, 0.30, 0.21), "lrp": (0.53, 0.48, 0.40)}
# P2 Table 4.3: epsilon-, epsilon+, score of the first and of the second, image by image.
EXCEPTIONS = {
    ("gradient", "lrp"): ((2, 4, 2, 1, 4, 3), (2, 3, 1, 1, 3, 2), (2, 6, 4, 1, 6, 5)),
    ("smooth-grad", "lrp"): (
        (275, 444, 169, 297, 433, 136),
        (392, 470, 78, 455, 467, 12),
        (458, 515, 57, 482, 510, 28),
    ),
}


@dataclass(frozen=True)
class PaperTable:
    """One table in the paper's layout: each cell has the published text and the run's."""

    source: str
    title: str
    columns: tuple[tuple[str, str], ...]
    """(group, heading) of each column; "" for no group."""
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """(name, ((published, run's), ...)); "–" where there is none."""
    note: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """The groups from the left, with the number of columns of each; empty if no column has a group."""
        spans = [(group, len(list(columns))) for group, columns in itertools.groupby(self.columns, lambda one: one[0])]
        return spans if any(group for group, _ in spans) else []


NONE = "–"


def _number(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else number(value, digits)


def _starred(coefficient: float, significant: bool) -> str:
    return NONE if np.isnan(coefficient) else _number(coefficient, 3) + ("†" if significant else "")


UNSEEN = ("seed", "batch_size")  # options that the papers do not mention and that no table depends on


def _unlike(key: str) -> dict[str, Any]:
    """The options of an explainer that differ from the papers', which are the defaults (P1 section IV-B)."""
    imports = imported_by(key)
    if imports:  # a run may be somebody else's, and a report imports nothing
        return {"function": ", ".join(imports)}
    explainer = explainer_from(key)
    return {
        field.name: getattr(explainer, field.name)
        for field in dataclasses.fields(explainer)  # type: ignore[arg-type]
        if field.name not in UNSEEN and getattr(explainer, field.name) != field.default
    }


def of_method(rows: pandas.DataFrame, method: str) -> str | None:
    """The run's explainer of this method: with the papers' options, or the one that differs least from them."""
    keys = [key for key in rows["explainer"].unique() if key.split(":", maxsplit=1)[0] == method]
    return min(keys, key=lambda key: len(_unlike(key)), default=None)


def _named(rows: pandas.DataFrame, method: str) -> str:
    """The papers' name of a method, and how the run's explainer differs from theirs."""
    key = of_method(rows, method)
    unlike = {} if key is None else _unlike(key)
    said = ", ".join(f"{option}={value}" for option, value in unlike.items())
    return METHODS.get(method, method) + (f" (the run’s has {said})" if said else "")


def _column_of(network: str) -> int | None:
    """The papers' network that this is: 0 for VGG-16, 1 for a ResNet (they do not say which), None for neither."""
    name = network.rpartition(":")[2].lower().replace("-", "").replace("_", "")
    if name == "vgg16":
        return 0
    return 1 if name.startswith("resnet") else None


def paper_tables(rows: pandas.DataFrame, network: str) -> list[PaperTable]:
    """All tables of P1 and P2 about APEM, for a run's scored rows (see `statistics.scored_rows`).

    The papers' main tables are about correctly classified images at the last stage, times-image. The run's numbers are
    about its correctly classified images if it has any of known class, and otherwise about all.
    """
    correct = in_set(rows, "correct")
    main = correct if len(correct) else rows
    which = f"{main['image'].nunique():,} {'correctly classified ' if len(correct) else ''}images"
    stages = [stage for stage in STAGES if stage in set(rows["stage"])]
    last = stages[-1]
    middle = _lookup(centres(main))

    def centre(method: str, stage: str, name: str) -> str:
        found = middle(of_method(main, method), stage)
        return NONE if found is None else found[f"{name}_mark"] + _number(found[name])

    column = _column_of(network)
    other = () if column is not None else (("", network),)
    tables = [
        PaperTable(
            "P1 Table I",
            f"Median score by network, at the last stage; the run: {network}, {which}, {last}",
            (("", "VGG"), ("", "ResNet"), *other),
            _rows(
                main,
                MEDIAN_BY_NETWORK,
                lambda method, values: (
                    *(
                        (_number(value), centre(method, last, "median") if i == column else "")
                        for i, value in enumerate(values)
                    ),
                    *(("", centre(method, last, "median")) for _ in other),
                ),
            ),
            "" if column is not None else "The papers have no such network.",
        ),
        PaperTable(
            "P1 Table II, P2 Tables 4.2 and 4.4",
            f"Average and median score by stage; the run: {which}",
            tuple((name, stage) for name in ("average", "median") for stage in USUAL_STAGES),
            _rows(
                main,
                BY_STAGE,
                lambda method, values: tuple(
                    (_number(value), centre(method, stage, name))
                    for value, (name, stage) in zip(values, [(n, s) for n in ("mean", "median") for s in USUAL_STAGES])
                ),
            ),
            "P2 Table 4.2 is the last stage of the first three methods.",
        ),
    ]
    tables += [_exceptions(rows, main, last, *pair) for pair in EXCEPTIONS]
    if has_shuffles(main):
        tables.append(_norm(main, which))
    tables += [_correctness(rows, last), _correlation(rows, last)]
    if column != 0:
        note = f"Published: VGG-16; the run: {network}."
        tables[1:] = [dataclasses.replace(one, note=f"{one.note} {note}".strip()) for one in tables[1:]]
    return tables


def _lookup(table: pandas.DataFrame) -> Callable[[str | None, str], dict[str, Any] | None]:
    found = {(row["explainer"], row["stage"]): row for row in table.to_dict("records")}
    return lambda explainer, stage: found.get((explainer, stage))


def _rows(rows: pandas.DataFrame, published: dict[str, Any], cells: Callable[..., Any]) -> tuple[Any, ...]:
    return tuple((_named(rows, method), cells(method, values)) for method, values in published.items())


def _exceptions(rows: pandas.DataFrame, main: pandas.DataFrame, stage: str, first: str, second: str) -> PaperTable:
    # Against the expected winner: the papers look at where LRP beats the gradient and SmoothGrad beats LRP.
    keys = of_method(rows, first), of_method(rows, second)
    expected, surprising = (keys[0], keys[1]) if first == "gradient" else (keys[1], keys[0])
    found: list[dict[str, Any]] = []
    if expected is not None and surprising is not None:
        found = exceptions(main, stage, expected, surprising).to_dict("records")
    order = ("first", "second") if first == "gradient" else ("second", "first")
    lines = []
    for i, values in enumerate(EXCEPTIONS[first, second]):
        one = found[i] if i < len(found) else None
        cells = []
        for published, (place, name) in zip(
            values, [(p, n) for p in order for n in ("epsilon_minus", "epsilon_plus", "score")]
        ):
            cells.append((_number(published, 0), NONE if one is None else _of_exception(one, name, place)))
        lines.append((f"image {i + 1}" + (f" ({one['image']})" if one else ""), tuple(cells)))
    names = [METHODS[method] for method in (first, second)]
    winner, loser = (names[1], names[0]) if first == "gradient" else (names[0], names[1])
    return PaperTable(
        "P2 Table 4.3" + ("a" if first == "gradient" else "b"),
        f"Images on which {winner} beats {loser}, in the papers a rare thing; the run’s clearest, {stage}",
        tuple((name, quantity) for name in names for quantity in ("ε⁻", "ε⁺", "score")),
        tuple(lines),
    )


def _of_exception(row: dict[str, Any], name: str, place: str) -> str:
    """An epsilon or score of one image, with a mark if its ray is censored."""
    minus, plus = (row[f"flipped_{sign}_{place}"] for sign in ("minus", "plus"))
    marks = {
        "epsilon_minus": "" if minus else ">",
        "epsilon_plus": "" if plus else ">",
        "score": {(True, True): "", (True, False): ">", (False, True): "<", (False, False): "≈"}[
            bool(minus), bool(plus)
        ],
    }
    return marks[name] + _number(row[f"{name}_{place}"], 0)


def _norm(main: pandas.DataFrame, which: str) -> PaperTable:
    found = _lookup(shuffled(main))

    def cell(method: str, stage: str) -> str:
        row = found(of_method(main, method), stage)
        return NONE if row is None else ("≈" if row["inexact"] else "") + _number(row["norm"])

    return PaperTable(
        "P2 Table 5.1",
        f"APEM normalised by shuffled maps; the run: {which}",
        tuple(("", stage) for stage in USUAL_STAGES),
        _rows(
            main,
            NORM,
            lambda method, values: tuple((_number(v), cell(method, s)) for v, s in zip(values, USUAL_STAGES)),
        ),
    )


def _correctness(rows: pandas.DataFrame, stage: str) -> PaperTable:
    found = _lookup(by_correctness(rows))

    def cell(method: str, name: str) -> str:
        row = found(of_method(rows, method), stage)
        return NONE if row is None or np.isnan(row[name]) else row[f"{name}_mark"] + _number(row[name])

    columns = [f"{name}_{which}" for name in ("mean", "median") for which in ("correct", "misclassified")]
    return PaperTable(
        "P1 Table III, P2 Table 5.2",
        f"Correctly classified against misclassified images; the run: {_count(rows, 'correct')} and "
        f"{_count(rows, 'misclassified')}, {stage}",
        tuple((name, which) for name in ("average", "median") for which in ("correct", "misclassified")),
        _rows(
            rows,
            BY_CORRECTNESS,
            lambda method, values: tuple((_number(value), cell(method, name)) for value, name in zip(values, columns)),
        ),
    )


def _correlation(rows: pandas.DataFrame, stage: str) -> PaperTable:
    sets = ("correct", "misclassified", "all")
    found = {
        (row["explainer"], row["set"]): row for row in loss_correlation(rows[rows["stage"] == stage]).to_dict("records")
    }

    def cell(method: str, which: str) -> str:
        row = found.get(("" if method == CONFIDENCE else of_method(rows, method), which))
        return NONE if row is None else _starred(row["coefficient"], row["p_value"] < SIGNIFICANT)

    return PaperTable(
        "P1 Table IV, P2 Table 5.3",
        f"Spearman correlation of score and loss, {stage}; †: p < 0.01",
        tuple(("loss", which) for which in sets),
        _rows(
            rows,
            LOSS_CORRELATION,
            lambda method, values: tuple((_starred(*value), cell(method, which)) for value, which in zip(values, sets)),
        ),
        f"The run: {_count(rows, 'correct')} correct and {_count(rows, 'misclassified')} misclassified images.",
    )


def _count(rows: pandas.DataFrame, name: str) -> str:
    return f"{in_set(rows, name)['image'].nunique():,}"
