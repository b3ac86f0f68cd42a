"""Public functions with arguments of any kind: either the slow definition's answer, or one sentence of ValueError or
TypeError, and nothing of the user's changed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import epsilons_of, literal_epsilons
from test_any_curve import network_of

import apem_fast as af
from apem_fast import explain, validation

SOME = settings(suppress_health_check=list(HealthCheck))

# What may stand where a number or a word is expected; most of it must be refused.
WRONG = [None, "", "1", "float32", b"1", [], [1.0], (1, 2), {}, {1}, 1j, math.nan, math.inf, -math.inf, -1, 0, -0.5]
WRONG += [True, False, np.bool_(True), object(), len, torch.ones(2), np.ones((1, 1)), torch.tensor([]), np.nan]
WRONG += [5e-324, 1e-300, 1e300, Fraction(1, 10**400), torch.tensor(1j), np.array("x")]
ALMOST = [1, 2, 3, 0.5, np.int16(2), np.float32(0.5), Fraction(1, 3), torch.tensor(2), torch.tensor(0.25), np.array(3)]


def spoilt(options: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """These options, half of the time one of them spoilt."""

    def spoil(options: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
        names = st.sampled_from(sorted(options) or [""])
        wrong = st.tuples(names, st.sampled_from(WRONG)).map(lambda pair: options | dict([pair] if pair[0] else []))
        return st.just(options) | wrong

    return options.flatmap(spoil)


MODEL = network_of("linear", 3, torch.float32)
GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randn(2, 2, 3, 3, generator=GENERATOR)
MAPS = torch.rand(2, 1, 3, 3, generator=GENERATOR)
MOST = 400  # steps of a grid that the definition is given time for


def came_of(call: Any, *arguments: Any, **options: Any) -> Any:
    """The answer, or None where it was refused in one sentence."""
    kept = [IMAGES.clone(), MAPS.clone(), {k: v.clone() for k, v in MODEL.state_dict().items()}]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call(*arguments, **options)
    except (ValueError, TypeError) as error:
        said = str(error)
        assert said and "\n" not in said.strip(), said
        assert not any(word in said for word in ("Traceback", "unsupported operand", "has no attribute")), said
        return None
    finally:
        assert torch.equal(kept[0], IMAGES) and torch.equal(kept[1], MAPS)
        assert all(torch.equal(value, MODEL.state_dict()[name]) for name, value in kept[2].items())


def steps_of(step: Any, max_epsilon: Any) -> tuple[float, int]:
    step, most = validation.number("step", step), validation.number("max_epsilon", max_epsilon)
    return step, validation.grid_steps(most, step)


BOUNDS = [(None, None), (-1.5, 1.5), (-9, None), (None, np.float64(2.0)), (1, 0), (None,), ((-2.0, -1.0), (2.0, 1.0))]
REACH = {"max_epsilon": st.sampled_from([4.0, 8, 8.0, 20, *ALMOST])}
SEARCHING = {
    "step": st.sampled_from([0.125, 0.25, 1, *ALMOST]),
    "search": st.sampled_from(["isolate", "exhaustive", "fast"]),
    "batch_size": st.sampled_from([1, 2, None, np.int16(3)]),
    "record": st.sampled_from(["float64", "float32"]),
    "bounds": st.sampled_from(BOUNDS),
}
OF_APEM = {"on_bad_map": st.sampled_from(["raise", "flag"]), "target": st.sampled_from([None, None, None, 2])}
OF_FILTER = {
    "levels": st.sampled_from([None, 2, 5]),
    "min_drop": st.sampled_from([0, 0.25, Fraction(1, 3)]),
    "patience": st.sampled_from([0, 2]),
    "against": st.sampled_from(["previous", "start"]),
}


def options_of(own: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return spoilt(st.fixed_dictionaries(REACH, optional=SEARCHING | own))


@SOME
@given(options=options_of(OF_APEM))
def test_apem(options):
    result = came_of(af.apem, MODEL, IMAGES, MAPS, **options)
    if result is None:
        return
    step, last = steps_of(options.get("step", 1.0), options["max_epsilon"])
    for epsilon in (result.epsilon_minus, result.epsilon_plus):
        assert bool((epsilon > 0).all()) and bool((epsilon <= result.max_epsilon * (1 + 2.0**-50)).all())
    free = options.get("bounds", (None, None)) == (None, None)
    if options.get("target") is None and free and last <= MOST:
        expected = [literal_epsilons(MODEL, x, r, step, last * step) for x, r in zip(IMAGES, MAPS)]
        assert flips_of(epsilons_of(result)) == flips_of(expected)


def flips_of(rows: Any) -> Any:
    """Without the epsilons of censored rays, which are no flips."""
    return [[(epsilon if flipped else None, flipped) for epsilon, flipped in rays] for rays in rows]


@SOME
@given(options=options_of(OF_FILTER))
def test_filter_relevance(options):
    result = came_of(af.filter_relevance, MODEL, IMAGES, MAPS, **options)
    if result is not None:
        kept = (result.relevance == MAPS) | (result.relevance == 0)
        assert options.get("levels") is not None or bool(kept.all())
        assert bool((result.relevance > 0).flatten(1).any(dim=1).all())


CALLS: dict[str, tuple[Callable[..., Any], dict[str, list[Any]]]] = {
    "minimum_epsilon": (
        lambda **o: af.minimum_epsilon(MODEL, IMAGES, MAPS / 9 * torch.ones_like(IMAGES), **o),
        {"max_epsilon": [9.0], "step": [1, 0.5]},
    ),
    "apem_norm": (lambda **o: af.apem_norm(MODEL, IMAGES, MAPS, **o), {"shuffles": [1, 2], "max_epsilon": [9.0]}),
    "relevance_map": (
        lambda **o: af.relevance_map(IMAGES, **o),
        {"percentile": [90, None], "channels": ["sum", "keep"], "images": [None, IMAGES]},
    ),
    "selectivity": (
        lambda **o: af.selectivity(MODEL, IMAGES, MAPS, **o),
        {"steps": [3, 5], "baseline": [0.0, 1], "batch_size": [None, 2]},
    ),
    "continuity": (
        lambda **o: af.continuity(MODEL, IMAGES, explain.Gradient(), **o),
        {"neighbours": [2], "distance": [0.1], "seed": [0]},
    ),
    "SmoothGrad": (
        lambda **o: explain.SmoothGrad(**o)(MODEL, IMAGES),
        {"samples": [2], "sigma": [0.2, 0], "seed": [0], "batch_size": [None, 1]},
    ),
    "IntegratedGradients": (
        lambda **o: explain.IntegratedGradients(**o)(MODEL, IMAGES),
        {"steps": [3], "baseline": [0.0]},
    ),
    "Occlusion": (
        lambda **o: explain.Occlusion(**o)(MODEL, IMAGES),
        {"window": [1, 2], "stride": [1], "value": [0.0, 1]},
    ),
    "RISE": (lambda **o: explain.RISE(**o)(MODEL, IMAGES), {"samples": [2], "cells": [2], "seed": [0]}),
    "audit": (
        lambda **o: af.audit(af.Evaluator(MODEL, IMAGES, max_epsilon=9.0), MAPS, **o),
        {"rays": [2, 3], "seed": [0]},
    ),
    "Evaluator": (
        lambda model=MODEL, images=IMAGES, **o: af.Evaluator(model, images, **o),
        {"model": [MODEL], "images": [IMAGES], "labels": [None, MODEL(IMAGES).argmax(1)]},
    ),
    "maps": (lambda maps: af.apem(MODEL, IMAGES, maps, max_epsilon=4.0), {"maps": [MAPS]}),
}


@SOME
@given(data=st.data())
def test_other_functions(data):
    call, arguments = CALLS[data.draw(st.sampled_from(sorted(CALLS)))]
    options = {name: data.draw(st.sampled_from(values)) for name, values in arguments.items()}
    spoils = data.draw(st.booleans())
    if spoils:
        options[data.draw(st.sampled_from(sorted(options)))] = data.draw(st.sampled_from([*ALMOST, *WRONG]))
    came = came_of(call, **options)
    assert spoils or came is not None
