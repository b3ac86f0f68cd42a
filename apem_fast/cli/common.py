"""What the commands of `apem-fast` share: errors, Ctrl-C, the device, and options made from records."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from functools import partial
from typing import Annotated, Any

import typer

STOPPED = 130  # the exit code that a shell gives a program stopped by Ctrl-C


def plain(text: str) -> str:
    """Foreign text for a terminal, with control characters as visible escapes."""
    return "".join(one if one.isprintable() or one == "\n" else repr(one)[1:-1] for one in text)


class user_errors:  # noqa: N801 - reads as a function where it is used
    """Reports a user's mistake as one sentence on standard error and exit code 2; other errors remain tracebacks.

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
    """Raises if options were given that would not be used, so that none is ignored silently."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{options} cannot be given with {because}")


flag = partial(typer.Option, metavar="")
"""An option without a value, for which `--help` shows no type."""


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


Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; auto takes a GPU if there is one.")]
"""The option --device, whose value `device_named` reads."""

_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "tuple[str, ...]": list[str]}


def options_of(
    record: type, *names: str, without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of a record, with their help and defaults, in place of its `**options`.

    The command gets them as the user typed them; `values_of` makes the record's arguments of them.

    Args:
        record: a dataclass whose fields are made by `apem_fast.options.option`, read without torch.
        names: of fields; without any, all fields that are options of the command line.
        without: names of fields that this command does not have. Fields that are its own parameters are left out too.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())
        taken = {one.name for one in own} | set(without)
        of_record = sorted(fields(record), key=lambda one: one.name not in vars(record)["__annotations__"])
        offered = [one for one in of_record if (one.name in names if names else "metavar" in one.metadata)]
        chosen = [one for one in offered if one.name not in taken]

        parameters = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD] + [*map(_parameter, chosen)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # which Typer reads
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return add


def values_of(record: type, given: dict[str, Any]) -> dict[str, Any]:
    """A command's `**options` as arguments of the record: lists are read, and left out if empty."""
    values = dict(given)
    for one in fields(record):
        if one.name in values and _is_list(one):
            texts = values.pop(one.name)
            if texts:
                values[one.name] = names_in(texts, f"--{one.name}")
    return values


def _is_list(of_field: Field[Any]) -> bool:
    return str(of_field.type).startswith("tuple[str")


def _parameter(of_field: Field[Any]) -> inspect.Parameter:
    """A field as a parameter for Typer, with the first of its types that a command line can give."""
    known = str(of_field.type).split(" | ")
    kind: Any = next((plain for name, plain in _TYPES.items() if name in known), str)
    facts = of_field.metadata
    shown = facts.get("shown")
    option = typer.Option(
        *(["--" + of_field.name.replace("_", "-")] if kind is bool else []),
        metavar=facts["metavar"],
        help=facts["text"] + (f"  [default: {shown}]" if shown else ""),
        show_default=not shown,
    )
    default = None if _is_list(of_field) else of_field.default
    annotated = Annotated[kind if default is not None else kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(of_field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotated)


def names_in(texts: Iterable[str], option: str) -> tuple[str, ...]:
    """The names that an option lists, separated by commas."""
    from apem_fast.explain import split_outside_brackets

    names = tuple(name.strip() for text in texts for name in split_outside_brackets(text, ",") if name.strip())
    if not names:
        raise ValueError(f"{option} must name at least one (got {', '.join(map(repr, texts))})")
    return names
