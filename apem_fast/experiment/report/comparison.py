"""Compares several runs: medians, whether their rankings agree, and differences image by image.

Runs of different networks show whether a ranking of methods holds for other networks (P1 Table I). Two runs of one
network on the same images show whether a new version of a method, or of anything else, changed the scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from apem_fast.experiment.report.censoring import (
    BETTER,
    FEWEST_FOR_AN_INTERVAL,
    WORSE,
    bootstrap_interval,
    compared,
    intervals,
    median_of,
)
from apem_fast.experiment.report.findings import SignTest, holm, listed
from apem_fast.experiment.report.gallery import gallery_data
from apem_fast.experiment.report.section import Cell, Section, Table, number, probability
from apem_fast.experiment.report.sets import image_sets
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.report.subject import explainer_names
from apem_fast.experiment.report.trust import tau
from apem_fast.experiment.run.store import RunStore
from apem_fast.relevance import STAGES

RESAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """A run to compare, with the images that the papers' figures would show."""

    name: str
    network: str
    rows: pandas.DataFrame
    methods: dict[str, str]  # name by explainer's key

    @classmethod
    def of(cls, name: str, store: RunStore) -> Run:
        rows, _ = scored_rows(store)
        if rows.empty:
            raise ValueError(f"{store.folder} holds no map that could be measured")
        return cls(name, store.options.network, next(iter(image_sets(rows).values())), explainer_names(store))

    def scores(self, stage: str) -> pandas.DataFrame:
        """The scores at a stage: (images, explainers)."""
        return self.rows[self.rows["stage"] == stage].pivot(index="image", columns="explainer", values="score")


def named(stores: list[RunStore]) -> dict[str, RunStore]:
    """Runs by their networks' names, or by their folders if two have the same network.

    Raises:
        ValueError: fewer than two runs, or the same one twice.
    """
    if len(stores) < 2:
        raise ValueError("a comparison needs at least two runs (got one)")
    folders = [store.folder.resolve() for store in stores]
    if len(set(folders)) < len(folders):
        raise ValueError(f"runs to compare must differ (got {folders[0]} twice)")
    networks = [store.options.network for store in stores]
    names = networks if len(set(networks)) == len(networks) else [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return dict(zip(names, stores, strict=True))


def write_comparison(stores: Mapping[str, RunStore], output: Path, seed: int = 0) -> Path:
    """Writes a page that compares runs; returns its path.

    Args:
        stores: at least two runs, by their names on the page.
        output: an HTML file.
        seed: of the bootstrap.
    """
    runs = [Run.of(name, store) for name, store in stores.items()]
    environment = Environment(
        loader=PackageLoader("apem_fast.experiment.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = [
        (run.name, run.network, run.rows["image"].nunique(), str(stores[run.name].folder.resolve())) for run in runs
    ]
    sections = [medians(runs), agreement(runs, seed), differences(runs)]
    page = environment.get_template("comparison.html").render(
        runs=facts,
        sections=[section for section in sections if section is not None],
        data=gallery_data(stores),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, "utf-8")
    return output


def _stages(runs: list[Run]) -> list[str]:
    return [stage for stage in STAGES if all(stage in set(run.rows["stage"]) for run in runs)]


def _methods(runs: list[Run]) -> dict[str, str]:
    """The methods that all runs have, by key."""
    return {
        key: name for key, name in runs[0].methods.items() if all(key in set(run.rows["explainer"]) for run in runs)
    }


def medians(runs: list[Run]) -> Section:
    """The median score of each method by run, in the layout of P1 Table I, with its 95 % interval."""
    lines = []
    names = {key: name for run in runs for key, name in run.methods.items()}
    for stage in [stage for stage in STAGES if any(stage in set(run.rows["stage"]) for run in runs)]:
        for key, name in names.items():
            cells = []
            for run in runs:
                part = run.rows[(run.rows["stage"] == stage) & (run.rows["explainer"] == key)]
                if part.empty:
                    cells += [Cell("–", np.nan), Cell("–", np.nan)]
                    continue
                scores = intervals(part, "score")
                estimate, (low, high) = median_of(scores), bootstrap_interval(scores.observed)
                cells.append(Cell(number(estimate.value, 1, estimate.mark), estimate.value))
                enough = len(scores) >= FEWEST_FOR_AN_INTERVAL
                cells.append(Cell(f"{number(low)} to {number(high)}", low) if enough else Cell("–", np.nan))
            if any(cell.text != "–" for cell in cells):
                lines.append((Cell(stage, list(STAGES).index(stage), is_name=True), Cell(name), *cells))
    columns = ("stage", "explanation", *(text for run in runs for text in (run.name, "95 % interval")))
    return Section(
        "medians",
        "Median scores",
        "Scores of different networks are on different scales: compare the order within a column, not "
        "the sizes across.",
        caption="The intervals resample a run’s images; fewer than six have none.",
        tables=(("", Table(columns, tuple(lines))),),
    )


def agreement(runs: list[Run], seed: int = 0) -> Section | None:
    """Whether two runs rank the methods alike: Kendall's tau of their medians, with a bootstrap over the images."""
    methods, stages = list(_methods(runs)), _stages(runs)
    if len(methods) < 2 or not stages:
        return None
    generator = np.random.default_rng(seed)
    lines, said = [], []
    for stage in stages:
        for one, other in itertools.combinations(runs, 2):
            tables = [run.scores(stage)[methods].dropna() for run in (one, other)]
            if not all(map(len, tables)):
                continue
            observed = tau(*(np.median(table, axis=0) for table in tables))
            again = [tau(*(np.median(part, axis=0) for part in parts)) for parts in _resampled(tables, generator)]
            low, high = np.percentile(again, [2.5, 97.5])
            enough = min(map(len, tables)) >= FEWEST_FOR_AN_INTERVAL
            lines.append(
                (
                    Cell(stage, list(STAGES).index(stage), is_name=True),
                    Cell(one.name),
                    Cell(other.name),
                    Cell(number(observed, 2), observed),
                    Cell(f"{number(low, 2)} to {number(high, 2)}", low) if enough else Cell("–", np.nan),
                )
            )
            if stage == stages[-1]:
                said.append(f"{one.name} and {other.name} {number(observed, 2)}")
    columns = ("stage", "first", "second", "Kendall’s tau", "95 % interval")
    return Section(
        "agreement",
        "Do they rank the methods alike?",
        f"Kendall’s tau of the medians of {listed([_methods(runs)[key] for key in methods])}: 1, the same order; 0, no "
        "agreement; −1, the opposite order.",
        finding=f"At the {stages[-1]} stage: {listed(said)}." if said else "",
        caption="The intervals resample the images, those that two runs share for both at once. P1 section IV-B, "
        "Table I.",
        tables=(("", Table(columns, tuple(lines))),),
    )


def _resampled(
    tables: Sequence[pandas.DataFrame], generator: np.random.Generator
) -> Iterator[list[NDArray[np.float64]]]:
    """The scores of two runs on images drawn with replacement; an image that both have is drawn for both."""
    images = tables[0].index.union(tables[1].index)
    rows = [table.index.get_indexer(images) for table in tables]
    values = [table.to_numpy(np.float64) for table in tables]
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(images), size=len(images))
        parts = [value[row[drawn][row[drawn] >= 0]] for value, row in zip(values, rows, strict=True)]
        if all(map(len, parts)):
            yield parts


def differences(runs: list[Run]) -> Section | None:
    """The first run's scores less each other's on the same images, where they share images, method by method."""
    found = []
    for other in runs[1:]:
        if other.network != runs[0].network:
            continue
        for stage in _stages([runs[0], other]):
            for key, name in _methods([runs[0], other]).items():
                line = _difference(runs[0], other, stage, key)
                if line is not None:
                    found.append((other.name, stage, name, *line))
    if not found:
        return None
    sure = holm([line[3].p_value for line in found])
    lines = tuple(
        (
            Cell(other),
            Cell(stage, list(STAGES).index(stage), is_name=True),
            Cell(name),
            Cell(f"{test.images:,}", test.images),
            Cell(number(median), median),
            Cell(f"{number(low)} to {number(high)}", low)
            if test.images >= FEWEST_FOR_AN_INTERVAL
            else Cell("–", np.nan),
            Cell(f"{test.better} / {test.worse}", test.better - test.worse),
            Cell(probability(test.p_value) + ("†" if apart else ""), test.p_value),
        )
        for (other, stage, name, test, median, low, high), apart in zip(found, sure, strict=True)
    )
    columns = ("run", "stage", "explanation", "images", "median difference", "95 % interval", "higher / lower", "p")
    return Section(
        "differences",
        f"{runs[0].name} less the others, image by image",
        "The same network, method and images: how much higher the first run’s scores are.",
        caption="Higher and lower: on how many images the first run surely scores so; p is the sign test’s. †: beyond "
        "chance at 5 % for all lines together (Holm’s procedure).",
        tables=(("", Table(columns, lines)),),
    )


def _difference(first: Run, second: Run, stage: str, key: str) -> tuple[SignTest, float, float, float] | None:
    one, other = (
        run.rows[(run.rows["stage"] == stage) & (run.rows["explainer"] == key)].set_index("image")
        for run in (first, second)
    )
    common = one.index[one.index.isin(other.index)]
    if common.empty:
        return None
    one, other = one.loc[common], other.loc[common]
    verdicts = compared(intervals(one, "score"), intervals(other, "score"))
    test = SignTest(int((verdicts == BETTER).sum()), int((verdicts == WORSE).sum()), len(common))
    apart = (one["score"] - other["score"]).to_numpy(np.float64)
    return test, float(np.median(apart)), *bootstrap_interval(apart)
