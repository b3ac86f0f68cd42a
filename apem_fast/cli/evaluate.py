"""`apem-fast evaluate`: a run, its table and its page. Imports are made when it runs, so that --help is fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apem_fast.cli.common import STOPPED, Device, device_named, options_of, user_errors, values_of
from apem_fast.experiment.run.options import RunOptions, usual_explainers


@options_of(RunOptions)
def evaluate(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where results go. Give the folder of a stopped run to continue it.",
        ),
    ],
    maps: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Also measure maps that exist already: a folder with a .npy, .npz, .pt or .png file for each image, "
            "with the image's name, of the part that the network sees. May be given several times.",
        ),
    ] = None,
    device: Device = "auto",
    **options: Any,
) -> None:
    """Compare explanations of a network's decisions on images.

    Explains each image with each method, measures every map (APEM: how much further the network can be pushed
    where the map says "irrelevant" than where it says "relevant"), prints a table, and writes CSV files, the maps
    and a page to open in a browser.

    The same command continues a run that was stopped. On many processors or GPUs:
    torchrun --nproc-per-node N -m apem_fast evaluate ...
    """
    from rich.console import Console

    from apem_fast.experiment.run.ranks import rank_of_process

    rank, _ = rank_of_process()
    console = Console(width=None if sys.stdout.isatty() else 110, quiet=rank > 0)
    with user_errors("evaluate"):
        from apem_fast.cli.console import (
            ConsoleProgress,
            flagged_lines,
            left_out_lines,
            show_table,
        )
        from apem_fast.experiment.report.exceptions import exceptional_images
        from apem_fast.experiment.report.page import write_page
        from apem_fast.experiment.report.summary import dropped_lines, summary, write_csv
        from apem_fast.experiment.run.evaluate import evaluate as run

        chosen = values_of(RunOptions, options)
        if maps:
            chosen["explainers"] = (*chosen.get("explainers", usual_explainers()), *map(stored_maps_named, maps))
        run_options = RunOptions(**chosen, device=device_named(device))
        try:
            with ConsoleProgress(console) as progress:
                store = run(run_options, output, progress=progress, also_pictured=exceptional_images)
        except KeyboardInterrupt:
            console.print(f"Stopped. {output} keeps what is done; the same command goes on from there.", soft_wrap=True)
            raise typer.Exit(STOPPED) from None
        if rank > 0:
            return
        write_csv(store)
        table = summary(store)
        page = write_page(store) if len(table) else None
    show_table(console, table)
    chosen_images = store.selection()
    notes = [chosen_images.note] if chosen_images and chosen_images.note else []
    for line in [*notes, *flagged_lines(store), *left_out_lines(store.left_out()), *dropped_lines(store)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if page is not None:
        console.print(f"The page with all maps: {page}", highlight=False, soft_wrap=True)
    else:
        console.print(
            "No map could be measured, so there is neither a table nor a page; try explainers whose maps have "
            "contrast, or another --percentile."
            if len(store.images())
            else "No image could be read, so there is neither a table nor a page.",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def stored_maps_named(text: str) -> str:
    """The explainer for a NAME=FOLDER of --maps."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ValueError(f"--maps must be NAME=FOLDER (got {text!r})")
    return f"maps:folder={folder!r}:title={name!r}"
