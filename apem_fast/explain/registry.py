"""Explanation methods by name, for the command line and for run records: "smooth-grad:samples=50:sigma=0.1".

Every method also takes `dtype=float64`, which computes it on a float64 copy of the model.

A name with dots is an import path: "captum.attr.IntegratedGradients:n_steps=20",
"my_package.my_module.my_method:strength=3".
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
from torch import Tensor

from apem_fast.explain.adapted import Adapted, from_callable, from_captum
from apem_fast.explain.attention import AttentionRelevance, AttentionRollout
from apem_fast.explain.baselines import CenteredGaussian, Edge, Random, Uniform
from apem_fast.explain.explainer import Explainer
from apem_fast.explain.given import Given
from apem_fast.explain.grad_cam import GradCAM, GuidedGradCAM
from apem_fast.explain.gradient import Gradient, InputXGradient, IntegratedGradients, SmoothGrad
from apem_fast.explain.guided import GuidedBackprop
from apem_fast.explain.in_float64 import InFloat64
from apem_fast.explain.lrp import LRP
from apem_fast.explain.perturbing import RISE, Occlusion
from apem_fast.explain.stored_maps import StoredMaps
from apem_fast.importing import module_named

EXPLAINERS: dict[str, type[Explainer]] = {
    "gradient": Gradient,
    "smooth-grad": SmoothGrad,
    "lrp": LRP,
    "grad-cam": GradCAM,
    "guided-backprop": GuidedBackprop,
    "guided-grad-cam": GuidedGradCAM,
    "input-x-gradient": InputXGradient,
    "integrated-gradients": IntegratedGradients,
    "occlusion": Occlusion,
    "rise": RISE,
    "attention-rollout": AttentionRollout,
    "attention-relevance": AttentionRelevance,
    "maps": StoredMaps,
    "random": Random,
    "uniform": Uniform,
    "edge": Edge,
    "centered-gaussian": CenteredGaussian,
}
_METHODS: dict[str, type[Explainer]] = {**EXPLAINERS, "given": Given}  # the last is in records alone
BASELINES = ("random", "uniform", "edge", "centered-gaussian")


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """The parts of `text` between separators, except for separators within brackets or quotes."""
    parts, depth, quote, escaped = [""], 0, "", False
    for character in text:
        if character == separator and not quote and depth <= 0:
            parts.append("")
            continue
        parts[-1] += character
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
    return parts


def explainer_from(specification: str) -> Explainer:
    """The explainer that "NAME" or "NAME:OPTION=VALUE:OPTION=VALUE" describes.

    A NAME with dots is the import path of a class of Captum or of a function (see `from_captum` and `from_callable`);
    its options are Python literals; anything else is taken as text. A colon in brackets or quotes belongs to a value.

    Raises:
        ValueError: an unknown name or option, or a value the option does not take.
    """
    name, *assignments = split_outside_brackets(specification.strip(), ":")
    texts: dict[str, str] = {}
    for assignment in assignments:
        option, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{name}: options are written OPTION=VALUE (got {assignment!r})")
        texts[option] = text
    if name in EXPLAINERS:
        dtype = texts.pop("dtype", None)
        if dtype not in (None, "float64"):
            raise ValueError(f"{name}: dtype must be float64 or left out (got {dtype!r})")
        return InFloat64(_own(name, texts)) if dtype else _own(name, texts)
    if name in _METHODS:
        return _own(name, texts)
    if "." in name:
        return _imported(name, texts)
    raise ValueError(f"unknown explainer {name!r}; {_suggestion(name, EXPLAINERS)}")


def imported_by(specification: str) -> list[str]:
    """The import paths that `explainer_from` would import for a specification, except this package's and Captum's.

    If the specification comes from somebody else, so does that code.
    """
    name, *assignments = split_outside_brackets(specification.strip(), ":")
    if name in _METHODS and name not in EXPLAINERS:
        return [explainer_from(specification).name]
    if name not in EXPLAINERS:
        return [name] if not name.startswith("captum.attr.") or name.count(".") != 2 else []
    fields = dataclasses.fields(EXPLAINERS[name])  # type: ignore[arg-type]
    functions = {field.name for field in fields if "Callable" in str(field.type)}
    pairs = (assignment.partition("=") for assignment in assignments)
    return [text for option, _, text in pairs if option in functions]


def key_of(explainer: Explainer) -> str:
    """The shortest specification that `explainer_from` turns into an equal explainer.

    Raises:
        ValueError: an explainer of a function that cannot be imported, so that no name describes it.
    """
    if isinstance(explainer, InFloat64):
        return f"{key_of(explainer.explainer)}:dtype=float64"
    if isinstance(explainer, Adapted):
        name = explainer.path
        if not name:
            raise ValueError(f"{explainer.name}: function must be importable to have a name (got one that is not)")
        values = {"seed": explainer.seed, "batch_size": explainer.batch_size, "name": explainer.title}
        defaults = {"seed": 0, "batch_size": 1, "name": name.rpartition(".")[2]}
        values.update(explainer.method_options)
    else:
        found = [key for key, method in _METHODS.items() if type(explainer) is method]
        if not found:
            raise ValueError(f"{explainer.name}: only this package's own methods have a name (got one that is not)")
        name = found[0]
        values = {field.name: getattr(explainer, field.name) for field in _fields(explainer)}
        defaults = {field.name: field.default for field in _fields(explainer)}
    changed = {option: value for option, value in values.items() if option not in defaults or value != defaults[option]}
    return ":".join([name, *(f"{option}={_written(value)}" for option, value in changed.items())])


def given_method(key: str) -> str:
    """The key itself; for a method under a name that a program chose, the key that it has under its own name."""
    if not key.startswith("given:"):
        return key
    given = explainer_from(key)
    return given.method if isinstance(given, Given) else key


def _fields(method: Any) -> tuple[dataclasses.Field[Any], ...]:
    """The options of a method: each is a dataclass."""
    return dataclasses.fields(method)


def _own(name: str, texts: dict[str, str]) -> Explainer:
    method = _METHODS[name]
    hints = get_type_hints(method)
    types = {field.name: hints[field.name] for field in _fields(method) if hints[field.name] in _readers}
    options: dict[str, Any] = {}
    for option, text in texts.items():
        if option not in types:
            known = _suggestion(option, types) if types else "it has none"
            raise ValueError(f"{name}: unknown option {option!r}; {known}")
        read, words = _readers[types[option]]
        try:
            options[option] = read(text)
        except (ValueError, KeyError):
            raise ValueError(f"{name}: {option} must be {words} (got {text!r})") from None
    required = [
        field.name for field in _fields(method) if field.default is dataclasses.MISSING and field.name not in options
    ]
    if required:
        raise ValueError(f"{name}: {required[0]} must be given, as {name}:{required[0]}=VALUE (got none)")
    return method(**options)


def _imported(path: str, texts: dict[str, str]) -> Explainer:
    module, _, name = path.rpartition(".")
    try:
        method = getattr(module_named(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"unknown explainer {path!r}; it cannot be imported: {error}") from None
    adapt = from_captum if isinstance(method, type) and hasattr(method, "attribute") else from_callable
    try:
        return adapt(method, **{option: _literal(text) for option, text in texts.items()})
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None


def _text(text: str) -> str:
    """A word, or a text in quotes."""
    value = _literal(text)
    return value if isinstance(value, str) else text


def _function(path: str) -> Callable[..., Any]:
    """The function that "package.module.function" or "package.module:function" names."""
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        return getattr(module_named(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(str(error)) from None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _written(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if callable(value):
        name = getattr(value, "__qualname__", "<")
        if "<" in name:
            raise ValueError(f"a function must be importable to have a name (got {name.rpartition('.')[2]})")
        return f"{value.__module__}.{name}"
    plain = isinstance(value, str) and _literal(value) == value and not set(value) & set(":,'\"()[]{}")
    return value if plain else repr(value)


_readers: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "an integer"),
    int | None: (int, "an integer"),
    float: (float, "a number"),
    str: (_text, "a word"),
    str | None: (str, "a word"),
    Callable[[Tensor], Tensor] | None: (_function, "the path of a function"),
    bool: ({"True": True, "true": True, "False": False, "false": False}.__getitem__, "True or False"),
}


def _suggestion(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(known)
