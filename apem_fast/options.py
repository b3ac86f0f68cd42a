"""The engine's options: one record, whose fields are arguments of every function that searches rays.

Each default and each help text is written only here; the command line and the docstrings are made from them. A new
option needs a field of `Options` and a line of `EngineOptions`, and nothing else: functions, adapters, runs, the filter
and the command line then have it. The command line reads this file without importing torch.
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
    """A field of a record of options, with its help text.

    Args:
        default: its value if none is given, or a function without arguments that makes one.
        text: what it does, for docstrings and `--help`.
        facts: `metavar`, the placeholder of its value in `--help` (a field without one is no option of the command
            line); `shown`, the text that `--help` gives for the default; `resumable`, whether a run may be continued
            with another value, because no result depends on it.
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
    search: str | Search[Any]
    precision: str


RUNNING, ENGINE = tuple(RunningOptions.__annotations__), tuple(EngineOptions.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How far and how finely rays are searched, and how the model is run.

    `search` may also be a policy from `apem_fast.search`, or one of your own.
    """

    max_epsilon: float = option(
        4096.0,
        "The greatest perturbation that is searched. A ray without a flip up to it is censored.",
        metavar="E",
    )
    step: float = option(1.0, "The step of the grid: every epsilon is a whole multiple of it.", metavar="E")
    search: str | Search[Any] = option(
        "isolate",
        "isolate: finds the first flip with some seven probes a ray; fast takes fewer, careful more. exhaustive: every "
        "epsilon in turn until the prediction changes, as the papers define it; very slow. certified: proves each "
        "epsilon, for networks of convolutions, linear layers, batch norm, pooling, ReLU and sums.",
        metavar="NAME",
    )
    batch_size: int | None = option(
        None,
        "The greatest number of perturbed images in one batch; lower it to save memory.",
        metavar="N",
        shown="the fastest that is found",
        resumable=True,
    )
    precision: str = option(
        "float32",
        "float32: every probe in the images' own type, without TensorFloat-32. bfloat16, float16, or tf32 on a GPU: "
        "probes run in that type first, and those that set an epsilon are confirmed in float32, so that no result "
        "changes. float16 is as fast as bfloat16 on most devices and closer to float32, so fewer probes need a "
        "confirmation. On a CPU it is tried after some hundred probes, and turned off again if it is not faster.",
        metavar="NAME",
        resumable=True,
    )
    compile: bool = option(
        False,
        "Run perturbed images through `torch.compile` of the model; margins close to 0 are still decided by the model "
        "itself. Compiling EfficientNet-Lite0 on two cores takes some 18 s, and a second or two in every later call "
        "of the same process, so it pays only for hours of work.",
        metavar="",
        resumable=True,
    )
    bounds: BoundsOf = option(
        (None, None),
        "(lower, upper) to which perturbed images are clamped, in the model's input space; the papers have none. Each "
        "is None, a number, or a number for each channel: for normalised images, `(-mean / std, (1 - mean) / std)` "
        "stands for pixels in [0, 1].",
    )
    record: str = option(
        "float64",
        "What decides labels, sign gradients, and margins too close to 0 for float32. float64: a copy of the model in "
        "float64, so that epsilons are the same on every machine. float32: the model itself. It is also taken, with a "
        "warning, for a model that cannot run in float64.",
        metavar="NAME",
    )

    @classmethod
    def of(cls, known: Iterable[str] = ENGINE, /, **options: Unpack[EngineOptions]) -> Options:
        """The record of these options. An unknown one raises an error that suggests the most similar name."""
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
        _ = self.policy, self.last_step  # raises now what these would raise later

    def _checked_bounds(self) -> BoundsOf:
        from apem_fast import validation

        return validation.bounds(self.bounds)

    @cached_property
    def policy(self) -> Search[Any]:
        """The search policy that `search` names or is."""
        from apem_fast.search import policy_of

        return policy_of(self.search)

    @cached_property
    def last_step(self) -> int:
        """The last step of the grid: the greatest k with k * step <= max_epsilon."""
        from apem_fast import validation

        return validation.grid_steps(self.max_epsilon, self.step)

    def of_engine(self) -> EngineOptions:
        """The engine's options of a record that also has other fields."""
        return {name: getattr(self, name) for name in ENGINE}  # type: ignore[return-value]


# -- docstrings and other records made from the fields ---------------------------------------------------------------

Documented = TypeVar("Documented", bound="Callable[..., Any]")
Described = TypeVar("Described", bound="type[Options]")


def described(record: Described) -> Described:
    """Adds the fields to the docstring of a record of options."""
    names = [one.name for one in dataclasses.fields(record)]
    record.__doc__ = f"{inspect.cleandoc(record.__doc__ or '')}\n\nArgs:\n{_entries(record, names, '    ')}"
    return record


def documented(names: Sequence[str] = ENGINE) -> Callable[[Documented], Documented]:
    """Adds the engine's options to a docstring, below its entry "options:".

    `help()` shows the result. An editor reads the source, so it shows only the entry "see `Options`", and offers the
    names from the type hints.

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
    """A field with the default and help of another record's field, for an option that both have."""
    other = record.__dataclass_fields__[name]  # type: ignore[attr-defined]
    if other.default_factory is not dataclasses.MISSING:
        return field(default_factory=other.default_factory, metadata=other.metadata)
    return field(default=other.default, metadata=other.metadata)


def resumable(of_field: dataclasses.Field[Any]) -> bool:
    """Whether a run may be continued with another value of this option, because no result depends on it."""
    return bool(of_field.metadata.get("resumable"))


described(Options)
