"""`apem-fast report`: the page of a run, with its statistics, figures and close-ups."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from apem_fast.cli.common import STOPPED, Device, device_named, flag, plain, user_errors


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that evaluate has written.")],
    paper: Annotated[
        bool, flag("--paper", help="Add the papers' tables, with their published numbers beside the run's.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="The page to write.  [default: index.html in the run's folder]"
        ),
    ] = None,
    images: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Show close-ups of the first N images: perturbed images, and margins along both rays.",
        ),
    ] = 6,
    trust: Annotated[
        bool,
        flag(
            "--trust",
            help="Also run foreign code that the run names (a network or an explainer). Use it only for runs whose "
            "origin you know.",
        ),
    ] = False,
    device: Device = "auto",
) -> None:
    """Write a run's page: statistics, figures, and close-ups of the first images.

    The page is one HTML file that works offline. Close-ups run the network again; they are kept in the run's folder, so
    that the next report is fast.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    with user_errors("report"):
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from apem_fast.experiment.report.report import foreign_code, write_report
        from apem_fast.experiment.run.store import RunStore

        bar = Progress(
            TextColumn("[bold]close-ups"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed} of {task.total} images"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        task = bar.add_task("", total=None, visible=False)
        try:
            with bar:
                store = RunStore(run)
                foreign = foreign_code(store) if images else []
                if foreign:
                    names = ", ".join(map(plain, foreign))
                    said = (
                        f"Running code that the run names: {names}."
                        if trust
                        else (
                            f"The run names code of somebody's own ({names}), so close-ups that need it are left out; "
                            "--trust runs it."
                        )
                    )
                    console.print(said, highlight=False, markup=False, soft_wrap=True)
                page = write_report(
                    store,
                    trust=trust,
                    images=images,
                    paper=paper,
                    output=output,
                    device=device_named(device),
                    progress=lambda done, total: bar.update(task, completed=done, total=total, visible=done < total),
                )
        except KeyboardInterrupt:
            console.print(f"Stopped. {run} keeps the close-ups that are done.", soft_wrap=True)
            raise typer.Exit(STOPPED) from None
    console.print(f"The report: {page}", highlight=False, soft_wrap=True)
