"""`apem-fast randomise`: what is left of a run's maps when the network forgets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from apem_fast.cli.common import Device, device_named, user_errors


def randomise(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that evaluate has written.")],
    images: Annotated[int, typer.Option(metavar="N", min=1, help="The first N images of the run take part.")] = 8,
    parts: Annotated[
        int, typer.Option(metavar="N", min=1, help="Into how many parts the network is cut, about; as it is built.")
    ] = 12,
    permuted_weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights of the same network, trained on permuted labels: tests these too."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Also run code that the run names, of somebody's own.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Test whether explanations change when the network forgets what it learnt.

    Re-initialises the network part by part, from the output to the input, and compares each method's maps with what
    they were: rank correlation, SSIM and HOG, with an edge detector beside them, which knows no network. Writes
    randomisation.csv into the run's folder and its page anew.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 110)
    with user_errors("randomise"):
        from apem_fast.experiment.randomising import FILE, randomise_run
        from apem_fast.experiment.report.page import write_page
        from apem_fast.experiment.run.store import RunStore

        store = RunStore(run)
        with console.status("") as status:
            randomise_run(
                store,
                images=images,
                parts=parts,
                permuted_weights=permuted_weights,
                device=device_named(device),
                trust=trust,
                progress=lambda doing: status.update(doing),
            )
        page = write_page(store)
    console.print(f"The table: {run / FILE}", highlight=False, soft_wrap=True)
    console.print(f"The page: {page}", highlight=False, soft_wrap=True)
