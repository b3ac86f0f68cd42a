"""`apem-fast audit`: compares a finished run's epsilons with scans of every grid point."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from apem_fast.cli.common import STOPPED, Device, device_named, flag, user_errors


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that evaluate has written.")],
    rays: Annotated[int, typer.Option(metavar="N", help="How many rays are drawn; each map has two.")] = 300,
    seed: Annotated[int, typer.Option(metavar="S", help="Of the draw.")] = 0,
    stratified: Annotated[
        bool, flag("--stratified", help="Draw from each explanation and stage in proportion to its rays.")
    ] = False,
    up_to: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="Draw only from rays found to flip up to E; the result is about these alone.",
            show_default="all",
        ),
    ] = None,
    trust: Annotated[
        bool,
        flag("--trust", help="Also run foreign code that the run names: see report."),
    ] = False,
    device: Device = "auto",
) -> None:
    """Check a run's epsilons: rays drawn at random are scanned at every grid point up to their flip.

    Says how many differ, and at most which share of all epsilons is wrong (95 % confidence). The result is kept in the
    run's folder, and the report shows it. A scan takes up to max_epsilon / step probes for each ray.

    The same command continues an audit that was stopped; with more rays and the same seed it only scans the additional
    ones. On many processors or GPUs: torchrun --nproc-per-node N -m apem_fast audit ...
    """
    from rich.console import Console

    from apem_fast.experiment.run.ranks import rank_of_process

    rank, _ = rank_of_process()
    console = Console(width=None if sys.stdout.isatty() else 110, quiet=rank > 0)
    with user_errors("audit"):
        from apem_fast.callers import said_by
        from apem_fast.cli.console import ConsoleProgress, audit_lines
        from apem_fast.experiment.audit import audit as audited

        try:
            with said_by(""), ConsoleProgress(console) as progress:
                result = audited(
                    run,
                    rays=rays,
                    seed=seed,
                    stratified=stratified,
                    up_to=up_to,
                    trust=trust,
                    device=device_named(device),
                    progress=progress,
                )
        except KeyboardInterrupt:
            console.print(f"Stopped. {run} keeps what is scanned; the same command goes on from there.", soft_wrap=True)
            raise typer.Exit(STOPPED) from None
    if rank > 0:
        return
    for line in audit_lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if up_to is not None:
        return
    console.print(
        f"What the rest could do to each mean and median: {run / 'audit' / 'table.csv'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
