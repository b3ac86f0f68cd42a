"""The command `apem-fast`. Each subcommand imports what it needs when it runs, so that --help is fast."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from apem_fast import __version__
from apem_fast.cli import siamese
from apem_fast.cli.audit import audit
from apem_fast.cli.common import flag
from apem_fast.cli.compare import compare
from apem_fast.cli.evaluate import evaluate
from apem_fast.cli.filter import filter_maps
from apem_fast.cli.randomise import randomise
from apem_fast.cli.report import report
from apem_fast.cli.study import study

app = typer.Typer(
    name="apem-fast",
    help="Measure how reliable visual explanations of a deep network are.",
    epilog="Start with: apem-fast evaluate --output my-first-run",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"apem-fast {__version__}")
        raise typer.Exit


@app.callback()
def _command(
    version: Annotated[
        bool, flag("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(siamese.app, name="siamese")
app.command()(evaluate)
app.command()(audit)
app.command("filter")(filter_maps)
app.command()(report)
app.command()(randomise)
app.command()(study)
app.command()(compare)


# This package, and the library that calls its commands.
HERE = Path(__file__).parents[1], Path(typer.__file__).parent


def as_sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as `warnings.formatwarning` would have it; of what the command says itself the sentence alone, because
    the line of code that it stands beside is none of the user's."""
    if any(Path(filename).is_relative_to(folder) for folder in HERE):
        return f"Warning: {str(message).removeprefix('apem_fast: ')}\n"
    return _FORMATWARNING(message, category, filename, lineno, line)


_FORMATWARNING = warnings.formatwarning


def main() -> None:
    """The entry point: as a program, not as a library."""
    warnings.formatwarning = as_sentence
    app(prog_name="apem-fast", args=sys.argv[1:])
