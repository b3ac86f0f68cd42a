"""Explanation methods by name, for the command line and for run records: "smooth-grad:samples=50:sigma=0.1"."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, get_type_hints

from apem_fast.explain.baselines import CenteredGaussian, Edge, Random, Uniform
from apem_fast.explain.explainer import Explainer
from apem_fast.explain.gradient import Gradient, SmoothGrad

EXPLAINERS: dict[str, type[Explainer]] = {
    "gradient": Gradient,
    "smooth-grad": SmoothGrad,
    "random": Random,
    "uniform": Uniform,
    "edge": Edge,
    "centered-gaussian": CenteredGaussian,
}
BASELINES = ("random", "uniform", "edge", "centered-gaussian")


def explainer_from(specification: str) -> Explainer:
    """The explainer that "NAME" or "NAME:OPTION=VALUE:OPTION=VALUE" describes.

    Raises:
        ValueError: an unknown name or option, or a value the option does not take.
    """
    name, *assignments = specification.strip().split(":")
    if name not in EXPLAINERS:
        raise ValueError(f"unknown explainer {name!r}; {_suggestion(name, EXPLAINERS)}")
    method = EXPLAINERS[name]
    types = {field.name: get_type_hints(method)[field.name] for field in dataclasses.fields(method)}
    options: dict[str, Any] = {}
    for assignment in assignments:
        option, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{name}: options are written OPTION=VALUE (got {assignment!r})")
        if option not in types:
            known = _suggestion(option, types) if types else "it has none"
            raise ValueError(f"{name}: unknown option {option!r}; {known}")
        try:
            options[option] = types[option](text)
        except ValueError:
            raise ValueError(f"{name}: {option} must be {_words[types[option]]} (got {text!r})") from None
    return method(**options)


def key_of(explainer: Explainer) -> str:
    """The shortest specification that `explainer_from` turns into an equal explainer."""
    name = next(key for key, method in EXPLAINERS.items() if type(explainer) is method)
    changed = [
        f"{field.name}={getattr(explainer, field.name)}"
        for field in dataclasses.fields(explainer)
        if getattr(explainer, field.name) != field.default
    ]
    return ":".join([name, *changed])


_words = {int: "an integer", float: "a number", str: "a word"}


def _suggestion(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(known)
