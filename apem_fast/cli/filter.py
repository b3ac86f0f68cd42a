"""`apem-fast filter`: the explanation filter over photographs, or over the maps of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apem_fast.cli.common import STOPPED, Device, device_named, flag, options_of, refuse_given, user_errors, values_of
from apem_fast.experiment.filter.options import OF_RUN, FilterOptions


# The filter always probes levels in float32; the percentile is the run's, or the papers'.
@options_of(FilterOptions, without=("precision",))
def filter_maps(
    context: typer.Context,
    photographs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PHOTOGRAPH]...",
            help="Image files, or names of bundled photographs such as cat; of a run, names of its images.  "
            "[default: cat, rocket, flower; of a run, its first three]",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where pictures and maps go.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The folder of a run: filter maps of that run, with its network and options. The results go into that "
            "folder, and the report shows them.",
        ),
    ] = None,
    trust: Annotated[bool, flag("--trust", help="With --run: also run foreign code that it names.")] = False,
    device: Device = "auto",
    **options: Any,
) -> None:
    """Remove from explanations what does not matter to the network.

    Sets the least values of each map to 0, one after the other, while the map's score (APEM) does not drop. Takes any
    number of methods and stages, and writes each map before and after, and a table.

    The same command continues a filter that was stopped.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    with user_errors("filter"):
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        from apem_fast.cli.console import filtered_line
        from apem_fast.experiment.filter.maps import (
            FOLDER_IN_RUN,
            filter_photographs,
            filter_run,
            photographs_named,
        )
        from apem_fast.experiment.run.store import RunStore

        if (run is None) == (output is None):
            raise ValueError("give either --output, a folder for results, or --run, a folder that evaluate wrote")
        if run is not None:
            refuse_given(context, OF_RUN, "--run, which filters maps of a run with that run's own")
        folder = Path(output or "") if run is None else run / FOLDER_IN_RUN
        store = None if run is None else RunStore(run)
        chosen = values_of(FilterOptions, options) | {"device": device_named(device)}
        if store is None:
            filter_options = FilterOptions(**chosen)
        else:
            own = {name: value for name, value in chosen.items() if name not in OF_RUN}
            filter_options = FilterOptions.of_run(store, **own)
        bar = Progress(
            TextColumn("[bold]{task.description:<34}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} levels, {task.fields[probes]:,} probes"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        tasks: dict[str, TaskID] = {}

        def show(name: str, settled: int, total: int, probes: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total, probes=0)
            bar.update(tasks[name], completed=settled, probes=probes)

        try:
            with bar:
                if store is not None:
                    names = photographs or list(store.images()["image"][:3])
                    done = filter_run(filter_options, store, names, show, trust=trust)
                else:
                    named = photographs_named(photographs or ["cat", "rocket", "flower"])
                    done = filter_photographs(filter_options, named, folder, show)
        except KeyboardInterrupt:
            console.print(f"Stopped. {folder} keeps what is done; the same command goes on from there.", soft_wrap=True)
            raise typer.Exit(STOPPED) from None
    for one in done:
        console.print(filtered_line(one), highlight=False, markup=False, soft_wrap=True)
    console.print(f"Before and after: {folder / 'filtered.png'}", highlight=False, soft_wrap=True)
