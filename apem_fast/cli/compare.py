"""`apem-fast compare`: several runs side by side on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from apem_fast.cli.common import user_errors


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of runs that evaluate has written.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")] = Path(
        "comparison.html"
    ),
) -> None:
    """Compare runs: medians, whether they rank the methods alike, and differences image by image.

    For runs of different networks on the same kind of images, or for two runs of one network before and after a change.
    No network is run.
    """
    with user_errors("compare"):
        from apem_fast.experiment.report.comparison import named, write_comparison
        from apem_fast.experiment.run.store import RunStore

        page = write_comparison(named([RunStore(run) for run in runs]), output)
    typer.echo(f"The comparison: {page}")
