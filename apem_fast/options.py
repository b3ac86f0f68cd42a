"""The engine's options: one record, whose fields every function takes that searches rays.

Each field's default and help stand here alone: the command line and the list of options in docstrings are made from
them. A new option is a field of `Options` and a line of `EngineOptions`; functions, adapters, a run, the filter and the
command line take it without a change. The command line reads this file without torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, Unpack

from apem_fast.callers import sentence

if TYPE_CHECKING:
    from torch import Tensor

    from apem_fast.search import Search

BoundOf: TypeAlias = "float | Sequence[float] | Tensor | None"
BoundsOf: TypeAlias = "tuple[BoundOf, BoundOf]"


def option(default: Any, text: str, **facts: Any) -> Any:
    """A field of a record of options, with what it is.

    Args:
        default: its value where none is given; a function without arguments makes it anew each time.
        text: what it is, for docstrings and `--help`.
        facts: `metavar`, what stands for its value in `--help`, without which it is no option of the command line;
            `shown`, how the default is called there; `resumable`, whether a run may go on with another value, because
            no result depends on it.
    """
    given = {"default_factory": default} if callable(default) else {"default": default}
    return field(**given, metadata={"text": text, **facts})


class RunningOptions(TypedDict, total=False):
    """Those fields of `Options` that say how the model is run."""

    batch_size: int | None
    compile: bool
    bounds: BoundsOf
    record: str


class EngineOptions(RunningOptions, total=False):
    """The fields of `Options` as keyword arguments, for `**options: Unpack[EngineOptions]`."""

    max_epsilon: float
    step: float
    search: str | Search
    precision: str


RUNNING, ENGINE = tuple(RunningOptions.__annotations__), tuple(EngineOptions.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How far and how finely rays are searched, and how the model is run.

    `search` may also be a policy from `apem_fast.search`, or one of your own.
    """

    max_epsilon: float = option(
        4096.0,
        "The size of perturbation at which the search of a ray ends: without a flip up to here it is censored.",
        metavar="E",
    )
    step: float = option(1.0, "The step of the grid: every epsilon is a whole multiple of it.", metavar="E")
    search: str | Search = option(
        "isolate",
        "isolate: the first flip from some seven probes a ray; fast, careful: from fewer, from more. exhaustive: every "
        "epsilon in turn until the prediction changes, as the papers define it; very slow. certified: each epsilon is "
        "proved, of networks of convolutions, linear layers, batch norm, pooling, ReLU and sums.",
        metavar="NAME",
    )
    batch_size: int | None = option(
        None,
        "The most perturbed images in one batch; lower it to save memory.",
        metavar="N",
        shown="what is found to be fastest",
        resumable=True,
    )
    precision: str = option(
        "float32",
        "float32: every probe in the images' own type, TensorFloat-32 off. bfloat16, float16, or tf32 on a GPU: probes "
        "are screened in it, and what sets an epsilon is confirmed in float32, so that no result changes. float16 is "
        "as fast as bfloat16 on most devices, is closer to float32, and so spares more. On a CPU it is tried once "
        "float32 has answered some hundred probes, and left where it is not faster.",
        metavar="NAME",
        resumable=True,
    )
    compile: bool = option(
        False,
        "Run perturbed images through `torch.compile` of the model; margins close to 0 are still decided by the model "
        "itself. Compiling EfficientNet-Lite0 on two cores takes some 18 s, and a second or two in every later call "
        "of the process: this is for hours of work.",
        metavar="",
        resumable=True,
    )
    bounds: BoundsOf = option(
        (None, None),
        "(lower, upper) to which perturbed images are clamped, in the model's input space; the papers have none. Each "
        "is None, a number, or a number for each channel, so that pixels in [0, 1] can be said where images are "
        "normalised: `(-mean / std, (1 - mean) / std)`.",
    )
    record: str = option(
        "float64",
        "Who decides labels, sign gradients, and margins too close to 0 for float32. float64: a copy of the model in "
        "it, so that epsilons are the same on every machine. float32: the model itself, as also where a model does not "
        "compute in float64, which is warned of.",
        metavar="NAME",
    )

    @classmethod
    def of(cls, known: Iterable[str] = ENGINE, /, **options: Unpack[EngineOptions]) -> Options:
        """The record of these options; one that is not among the known is refused with the nearest."""
        known = tuple(known)
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise TypeError(sentence(f"unknown option {name}; {hint}known: {', '.join(known)}"))
        return cls(**options)

    def __post_init__(self) -> None:
        from apem_fast import validation

        validation.make_numbers_plain(self)
        for name in ("step", "max_epsilon"):
            object.__setattr__(self, name, validation.positive(name, getattr(self, name)))
        object.__setattr__(self, "batch_size", validation.whole_or_none("batch_size", self.batch_size))
        validation.precision(self.precision)
        object.__setattr__(self, "bounds", self._checked_bounds())
        validation.choice("record", self.record, validation.RECORDS)
        _ = self.policy, self.last_step  # what they refuse is refused now

    def _checked_bounds(self) -> BoundsOf:
        from apem_fast import validation

        return validation.bounds(self.bounds)

    @cached_property
    def policy(self) -> Search:
        """The search policy that `search` names or is."""
        from apem_fast.search import policy_of

        return policy_of(self.search)

    @cached_property
    def last_step(self) -> int:
        """The last step of the grid: the greatest k with k * step <= max_epsilon."""
        from apem_fast import validation

        return validation.grid_steps(self.max_epsilon, self.step)

    def of_engine(self) -> EngineOptions:
        """The engine's options alone, of a record that has others besides."""
        return {name: getattr(self, name) for name in ENGINE}  # type: ignore[return-value]


# -- what is made from the fields ------------------------------------------------------------------------------------

Documented = TypeVar("Documented", bound="Callable[..., Any]")
Described = TypeVar("Described", bound="type[Options]")


def described(record: Described) -> Described:
    """Adds the fields to the docstring of a record of options."""
    names = [one.name for one in dataclasses.fields(record)]
    record.__doc__ = f"{inspect.cleandoc(record.__doc__ or '')}\n\nArgs:\n{_entries(record, names, '    ')}"
    return record


def documented(names: Sequence[str] = ENGINE) -> Callable[[Documented], Documented]:
    """Adds the engine's options to a docstring, below its entry "options:".

    What `help()` shows is this; an editor, which reads the source, shows the entry alone, "see `Options`", and offers
    the names by their types.

    Args:
        names: which of them.
    """

    def add(what: Documented) -> Documented:
        text = inspect.cleandoc(what.__doc__ or "")
        entry = re.search(r"^( +)options: .*(\n\1 +.*)*", text, re.MULTILINE)
        if entry is not None:  # else docstrings were left out, as `python -OO` does
            text = f"{text[: entry.end()]}\n{_entries(Options, names, entry[1] + '    ')}{text[entry.end() :]}"
            what.__doc__ = text
        return what

    return add


def _entries(record: type, names: Sequence[str], indent: str) -> str:
    fields = [one for one in dataclasses.fields(record) if one.name in names]
    texts = [f"{one.name} ({one.metadata.get('shown', one.default)}): {one.metadata['text']}" for one in fields]
    return "\n".join(
        textwrap.fill(text, 118, initial_indent=indent, subsequent_indent=indent + "    ", break_on_hyphens=False)
        for text in texts
    )


def field_of(record: type, name: str) -> Any:
    """A field like another record's: for an option that both have."""
    other = record.__dataclass_fields__[name]  # type: ignore[attr-defined]
    if other.default_factory is not dataclasses.MISSING:
        return field(default_factory=other.default_factory, metadata=other.metadata)
    return field(default=other.default, metadata=other.metadata)


def resumable(of_field: dataclasses.Field[Any]) -> bool:
    """Whether a run may go on with another value of it, because no result depends on it."""
    return bool(of_field.metadata.get("resumable"))


described(Options)
