"""`apem-fast filter`: the explanation filter over photographs, or over the maps of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apem_fast.cli.common import STOPPED, device_named, refuse_given, user_errors


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
            help="A folder that evaluate wrote: filter maps of that run, with its network and its options, "
            "into that folder, where the report shows them.",
        ),
    ] = None,
    network: Annotated[
        str, typer.Option(metavar="NAME", help="The network to explain, as for evaluate.")
    ] = "efficientnet-lite0",
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="The network's weights, if it does not bring them.")
    ] = None,
    explainer: Annotated[str, typer.Option(metavar="NAME", help="The explanation to filter.")] = "gradient",
    stage: Annotated[
        str, typer.Option(metavar="NAME", help="What a map looks like: 3-channel, 1-channel, times-image.")
    ] = "1-channel",
    levels: Annotated[
        int | None,
        typer.Option(metavar="N", help="Take a map's values away in N steps.  [default: one value at a time]"),
    ] = None,
    min_drop: Annotated[
        float, typer.Option(metavar="E", help="A score that falls by no more than this has not dropped.")
    ] = 0.0,
    patience: Annotated[
        int, typer.Option(metavar="N", help="For how many further levels a score may stay lower before that is a drop.")
    ] = 0,
    against: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="What a score is compared with: previous, the level before (the paper's); start, the map as it came.",
        ),
    ] = "previous",
    max_epsilon: Annotated[
        float, typer.Option(metavar="E", help="Give up on a map when a perturbation of this size changes nothing.")
    ] = 4096.0,
    step: Annotated[float, typer.Option(metavar="E", help="Precision: every epsilon is a multiple of it.")] = 1.0,
    search: Annotated[
        str, typer.Option(metavar="NAME", help="isolate: fast. exhaustive: every level and every epsilon; days.")
    ] = "isolate",
    trust: Annotated[
        bool, typer.Option("--trust", help="Of a run: also run code that it names, of somebody's own.")
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; auto takes a GPU where there is one.")
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(metavar="N", help="The most images in one batch; lower it to save memory.")
    ] = None,
) -> None:
    """Take away from explanations what does not matter to the network.

    Sets the least values of each map to zero, one after the other, for as long as the map's score (APEM) does not
    drop. Writes each map before and after, alone and times the photograph, and a table.

    A filter that is stopped goes on with the next photograph when the same command is given again.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    with user_errors("filter"):
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        from apem_fast.experiment.filter.maps import (
            FOLDER_IN_RUN,
            FilterOptions,
            filter_photographs,
            filter_run,
            photographs_named,
        )
        from apem_fast.experiment.run.store import RunStore

        if (run is None) == (output is None):
            raise ValueError("give either --output, a folder for results, or --run, a folder that evaluate wrote")
        if run is not None:
            used_up = ("network", "weights", "max_epsilon", "step", "search")
            refuse_given(context, used_up, "--run, which filters maps of a run with that run's own")
        folder = Path(output or "") if run is None else run / FOLDER_IN_RUN
        own: dict[str, Any] = {
            "explainer": explainer,
            "stage": stage,
            "levels": levels,
            "min_drop": min_drop,
            "patience": patience,
            "against": against,
            "batch_size": batch_size,
            "device": device_named(device),
        }
        store = None if run is None else RunStore(run)
        if store is not None:
            options = FilterOptions.of_run(store, **own)
        else:
            options = FilterOptions(
                network=network, weights=weights, max_epsilon=max_epsilon, step=step, search=search, **own
            )
        bar = Progress(
            TextColumn("[bold]{task.description:<14}"),
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
                    done = filter_run(options, store, names, show, trust=trust)
                else:
                    chosen = photographs_named(photographs or ["cat", "rocket", "flower"])
                    done = filter_photographs(options, chosen, folder, show)
        except KeyboardInterrupt:
            console.print(f"Stopped. {folder} keeps what is done; the same command goes on from there.", soft_wrap=True)
            raise typer.Exit(STOPPED) from None
    for one in done:
        numbers = one.numbers
        console.print(
            f"[bold]{one.name}[/bold] ({one.prediction}): score {numbers['score_before']:g} -> "
            f"{numbers['score_after']:g}, {numbers['levels_removed']:,} of {numbers['levels']:,} levels and "
            f"{100 * numbers['removed_share']:.1f} % of the relevance gone, {numbers['probes']:,} probes. "
            f"{numbers['stopped']}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Before and after: {folder / 'filtered.png'}", highlight=False, soft_wrap=True)
