"""`apem-fast randomise`: how similar a run's maps stay when the network is randomised."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from apem_fast.cli.common import Device, device_named, flag, user_errors


def randomise(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run that evaluate has written.")],
    images: Annotated[int, typer.Option(metavar="N", min=1, help="Use the first N images of the run.")] = 8,
    parts: Annotated[
        int, typer.Option(metavar="N", min=1, help="About how many parts the network is divided into.")
    ] = 12,
    permuted_weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also test the same network with these weights, trained on permuted labels."),
    ] = None,
    trust: Annotated[bool, flag("--trust", help="Also run foreign code that the run names.")] = False,
    device: Device = "auto",
) -> None:
    """Test whether explanations change when the network is randomised.

    Re-initialises the network part by part, from the output to the input, and compares each method's maps with the
    originals: rank correlation, SSIM and HOG. An edge detector, which does not use the network, is shown for
    comparison. Writes randomisation.csv into the run's folder, and its page again.
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
