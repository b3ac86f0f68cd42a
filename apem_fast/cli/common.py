"""What the commands of `apem-fast` share: a user's mistakes, Ctrl-C, the device, and one process among many."""

from __future__ import annotations

from collections.abc import Iterable

import typer

STOPPED = 130  # as a shell reports a program stopped by Ctrl-C


def plain(text: str) -> str:
    """Text of somebody else's for a terminal: control characters are shown, not sent."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)


class user_errors:  # noqa: N801 - reads as a function where it is used
    """A user's mistake is one sentence on standard error and exit code 2; a fault of the program is a traceback.

    Of many processes only the first prints, except for a `RankFailed`.
    """

    def __init__(self, command: str):
        self.command = command

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (ValueError, FileNotFoundError)) and str(error):
            from apem_fast.experiment.run.ranks import RankFailed, rank_of_process

            if rank_of_process()[0] == 0 or isinstance(error, RankFailed):
                typer.echo(f"apem-fast {self.command}: {plain(str(error))}", err=True)
            raise typer.Exit(2) from None


def refuse_given(context: typer.Context, names: Iterable[str], because: str) -> None:
    """Refuses options that were given and would not be used, so that none is ignored in silence."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{options} cannot be given with {because}")


def device_named(name: str) -> str:
    """The device of a --device option."""
    import torch

    cuda = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if cuda else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise ValueError(f"--device must be cpu, cuda, cuda:N or auto (got {name!r})")
    if kind == "cuda" and not cuda:
        raise ValueError("--device cuda needs an NVIDIA GPU that torch can use (none was found)")
    return name
