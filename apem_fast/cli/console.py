"""A run on the terminal: its progress, then its table."""

from __future__ import annotations

import time
from typing import Self

import pandas
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from apem_fast.experiment.filter.filtered import FilteredPhotograph
from apem_fast.experiment.inputs.image_folders import LeftOut
from apem_fast.experiment.report.summary import ON_TERMINAL, totals
from apem_fast.experiment.run.audited_rays import RunAudit
from apem_fast.experiment.run.progress import RunProgress, TimeLeft, doing_of
from apem_fast.experiment.run.store import RunStore


class _TimeLeft(ProgressColumn):
    """The time left, from the mean speed of the whole run: steadier than rich's own, since rays end in bursts."""

    def __init__(self) -> None:
        super().__init__()
        self.left = TimeLeft(time.monotonic)

    def render(self, task: Task) -> Text:
        return Text(self.left.text(task.fields["state"]), style="progress.remaining")


class ConsoleProgress:
    """Shows `RunProgress`: a live bar on a terminal, and otherwise one line for each finished step.

    It is a context manager; call it with each state. A run of many processes shows the share of the first.
    """

    def __init__(self, console: Console):
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.fields[explainer]:<16}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.fields[images]}"),
            TextColumn("{task.fields[doing]}"),
            TextColumn("[cyan]{task.fields[rate]}"),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(
            "", explainer="", images="", doing="", rate="", state=RunProgress(), total=None
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def __call__(self, state: RunProgress) -> None:
        if state.finished:
            self.progress.console.print(state.finished, highlight=False)
        rate = state.probes / state.search_seconds if state.search_seconds > 0 else 0.0
        self.progress.update(
            self.task,
            completed=state.work,
            total=state.work_total or None,
            explainer=state.explainer,
            images=_images(state),
            doing=doing_of(state),
            state=state,
            rate=f"{rate:.0f} probes/s" if rate else "",
        )


def _images(state: RunProgress) -> str:
    if not state.images:
        return ""
    share = f" (process 1 of {state.ranks})" if state.ranks > 1 else ""
    return f"{state.images_finished:,} of {state.images:,} images{share},"


def left_out_lines(left_out: list[LeftOut], shown: int = 5) -> list[str]:
    """The files that were left out, with a line for each of the first."""
    if not left_out:
        return []
    count = f"{len(left_out):,} files were left out" if len(left_out) > 1 else "1 file was left out"
    lines = [f"{count} (left-out.csv lists them):", *(f"  {one.path}: {one.reason}" for one in left_out[:shown])]
    return lines + ([f"  and {len(left_out) - shown:,} more"] if len(left_out) > shown else [])


def flagged_lines(store: RunStore) -> list[str]:
    """One line with the reasons if maps could not be measured."""
    results = store.results()
    reasons = results.loc[results["flag"] != "", "flag"].value_counts() if len(results) else None
    if reasons is None or not len(reasons):
        return []
    reasons_text = "; ".join(f"{count:,}: {reason}" for reason, count in reasons.items())
    return [
        f"{int(reasons.sum()):,} of {len(results):,} maps could not be measured and count nowhere ({reasons_text})."
    ]


def summary_table(table: pandas.DataFrame) -> Table:
    """The summary for a terminal, stage by stage, the best median of each stage in bold."""
    shown = Table(
        box=None, pad_edge=False, header_style="bold", title="APEM: epsilon+ less epsilon-", title_justify="left"
    )
    for column in ON_TERMINAL:
        shown.add_column(column.heading, justify="left" if column.kind == "text" else "right", no_wrap=True)
    for number, (stage, rows) in enumerate(table.groupby("stage", sort=False)):
        if number:
            shown.add_row()
        shown.add_row(Text(stage, style="cyan"))
        best = rows["median"].max()
        for row in rows.to_dict("records"):
            style = "bold" if row["median"] == best else ""
            shown.add_row(*(column.text(row) for column in ON_TERMINAL), style=style)
    return shown


def show_table(console: Console, table: pandas.DataFrame) -> None:
    """Prints a run's table and what it cost; nothing if no map could be measured."""
    if not len(table):
        return
    console.print()
    console.print(summary_table(table))
    console.print()
    console.print(totals_line(table), highlight=False)


def filtered_line(one: FilteredPhotograph) -> str:
    """What the filter did to one map."""
    numbers = one.numbers
    return (
        f"{one.name} ({one.prediction}), {one.method} at {one.stage}: "
        f"score {numbers['score_before']:g} -> {numbers['score_after']:g}, "
        f"{numbers['levels_removed']:,} of {numbers['levels']:,} levels and "
        f"{100 * numbers['removed_share']:.1f} % of the relevance gone, {numbers['probes']:,} probes. "
        f"{numbers['stopped']}"
    )


def audit_lines(audit: RunAudit) -> list[str]:
    """The rays for which search and scan differ, and what the audit says of all."""
    lines = []
    for one in audit.differences:
        ray = "irrelevance" if one.irrelevance else "relevance"
        found, scanned = ("no flip" if value is None else f"{value:g}" for value in (one.found, one.scanned))
        lines.append(f"{one.maps}, {one.image}, {ray}: the search found {found}, the scan {scanned}")
    return [*lines, str(audit), f"{audit.probes:,} probes in {audit.seconds:.0f} s"]


def totals_line(table: pandas.DataFrame) -> str:
    """One sentence on what the run cost."""
    sums = totals(table)
    return (
        f"{sums['probes']:,.0f} probes in {sums['seconds']:.0f} s; "
        f"a scan of every grid point would have taken {sums['scan_probes']:,.0f} ({sums['saving']:.1f} times as many)"
    )
