"""The statistical sections of a run's page, in order; each is a function, in the file for its kind."""

from __future__ import annotations

from collections.abc import Callable

import pandas

from apem_fast.experiment.report import (
    exceptions,
    measure_sections,
    method_sections,
    randomisation_section,
    trust_sections,
)
from apem_fast.experiment.report.section import Section
from apem_fast.experiment.report.subject import Subject
from apem_fast.experiment.run.store import RunStore

SECTIONS: tuple[Callable[[Subject], Section | None], ...] = (
    method_sections.spread,
    method_sections.comparisons,
    exceptions.exceptions,
    method_sections.simplification,
    method_sections.irrelevance,
    method_sections.flips,
    trust_sections.correctness,
    trust_sections.loss,
    trust_sections.shuffles,
    trust_sections.trust,
    measure_sections.other_measures,
    measure_sections.curves,
    measure_sections.reliability,
    randomisation_section.randomisation,
)
"""The functions of all sections. One returns None if the run has no numbers for it."""


def sections_of(store: RunStore, rows: pandas.DataFrame, seed: int = 0) -> list[Section]:
    """Every section that the run has numbers for; the arguments are those of `Subject`."""
    run = Subject(store, rows, seed)
    return [section for make in SECTIONS if (section := make(run)) is not None]
