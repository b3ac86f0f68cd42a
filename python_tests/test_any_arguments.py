"""Public functions with arguments of any kind: either the slow definition's answer, or one sentence of ValueError or
TypeError, and nothing of the user's changed."""

from __future__ import annotations

import math
import warnings
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

SOME = settings(max_examples=settings().max_examples * 2, suppress_health_check=list(HealthCheck))

# What may stand where a number or a word is expected; most of it must be refused.
WRONG = [None, "", "1", "float32", b"1", [], [1.0], (1, 2), {}, {1}, 1j, math.nan, math.inf, -math.inf, -1, 0, -0.5]
WRONG += [True, False, np.bool_(True), object(), len, torch.ones(2), np.ones((1, 1)), torch.tensor([]), np.nan]
WRONG += [5e-324, 1e-300, 1e300, 10**400, -(10**400), Fraction(1, 10**400), torch.tensor(1j), np.array("x")]
ALMOST = [1, 2, 3, 0.5, np.int16(2), np.float32(0.5), Fraction(1, 3), torch.tensor(2), torch.tensor(0.25), np.array(3)]


def mixed(*right: Any) -> st.SearchStrategy[Any]:
    """Right values mostly, and whatever else."""
    return st.sampled_from([*right, *right, *right, *ALMOST]) | st.sampled_from(WRONG)


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
        assert not any(word in said for word in ("Traceback", "object at 0x", "unsupported operand")), said
        return None
    finally:
        assert torch.equal(kept[0], IMAGES) and torch.equal(kept[1], MAPS)
        assert all(torch.equal(value, MODEL.state_dict()[name]) for name, value in kept[2].items())


def steps_of(step: Any, max_epsilon: Any) -> tuple[float, int]:
    step, most = validation.number("step", step), validation.number("max_epsilon", max_epsilon)
    return step, validation.grid_steps(most, step)


BOUNDS = [(None, None), (-1.5, 1.5), (-9, None), (None, np.float64(2.0)), (1, 0), (None,), ((-2.0, -1.0), (2.0, 1.0))]
searching = st.fixed_dictionaries(
    {},
    optional={
        "step": mixed(0.125, 0.25, 1),
        "max_epsilon": mixed(4.0, 8, 20),
        "search": mixed("isolate", "exhaustive", "fast"),
        "batch_size": mixed(1, 2, None),
        "precision": mixed("float32"),
        "record": mixed("float64", "float32"),
        "bounds": st.sampled_from(BOUNDS) | st.sampled_from(WRONG),
        "compile": st.just(False),
    },
)


@SOME
@given(options=searching, on_bad_map=mixed("raise", "flag"), target=st.sampled_from([None] * 6) | mixed(None))
def test_apem(options, on_bad_map, target):
    options = {"max_epsilon": 8.0} | options
    result = came_of(af.apem, MODEL, IMAGES, MAPS, on_bad_map=on_bad_map, target=target, **options)
    if result is None:
        return
    step, last = steps_of(options.get("step", 1.0), options["max_epsilon"])
    for epsilon in (result.epsilon_minus, result.epsilon_plus):
        assert bool((epsilon > 0).all()) and bool((epsilon <= result.max_epsilon * (1 + 2.0**-50)).all())
    if target is None and options.get("bounds", (None, None)) == (None, None) and last <= MOST:
        expected = []
        for image, relevance in zip(IMAGES, MAPS):  # the definition censors at the last step of the grid
            rays = literal_epsilons(MODEL, image, relevance, step, last * step)
            expected.append([(k, f) if f else (None, f) for k, f in rays])
        came = [[(e, f) if f else (None, f) for e, f in rays] for rays in epsilons_of(result)]
        assert came == expected


@SOME
@given(
    options=searching,
    levels=mixed(None, 2, 5),
    min_drop=mixed(0, 0.25),
    patience=mixed(0, 2),
    against=mixed("previous", "start"),
)
def test_filter_relevance(options, levels, min_drop, patience, against):
    options = {"max_epsilon": 8.0} | options
    if options.get("search") == "exhaustive" and options.get("step") in (5e-324, 1e-300):
        return  # a scan that never ends, which is warned of
    extra = {"levels": levels, "min_drop": min_drop, "patience": patience, "against": against}
    result = came_of(af.filter_relevance, MODEL, IMAGES, MAPS, **extra, **options)
    if result is not None:
        kept = (result.relevance == MAPS) | (result.relevance == 0)
        assert levels is not None or bool(kept.all())
        assert bool((result.relevance > 0).flatten(1).any(dim=1).all())


@SOME
@given(data=st.data())
def test_other_functions(data):
    def number(*right: Any) -> Any:
        return data.draw(mixed(*right))

    direction = MAPS / 9 * torch.ones_like(IMAGES)
    calls = {
        "minimum_epsilon": lambda: af.minimum_epsilon(
            MODEL, IMAGES, direction, max_epsilon=number(9.0), step=number(1)
        ),
        "apem_norm": lambda: af.apem_norm(MODEL, IMAGES, MAPS, shuffles=number(1, 2), max_epsilon=number(9.0)),
        "relevance_map": lambda: af.relevance_map(
            IMAGES, percentile=number(90, None), channels=number("sum", "keep"), images=number(None, IMAGES)
        ),
        "selectivity": lambda: af.selectivity(
            MODEL, IMAGES, MAPS, steps=number(3, 5), baseline=number(0.0, 1), batch_size=number(None, 2)
        ),
        "continuity": lambda: af.continuity(
            MODEL, IMAGES, explain.Gradient(), neighbours=number(2), distance=number(0.1), seed=number(0)
        ),
        "SmoothGrad": lambda: explain.SmoothGrad(samples=number(2), sigma=number(0.2), seed=number(0))(MODEL, IMAGES),
        "IntegratedGradients": lambda: explain.IntegratedGradients(steps=number(3), baseline=number(0.0))(
            MODEL, IMAGES
        ),
        "Occlusion": lambda: explain.Occlusion(window=number(1, 2), stride=number(1), value=number(0.0))(MODEL, IMAGES),
        "RISE": lambda: explain.RISE(samples=number(2), cells=number(2), seed=number(0))(MODEL, IMAGES),
        "audit": lambda: af.audit(
            af.Evaluator(MODEL, IMAGES, max_epsilon=9.0), MAPS, rays=number(2, None), seed=number(0)
        ),
        "Evaluator": lambda: af.Evaluator(number(MODEL), number(IMAGES), labels=number(None)),
        "maps": lambda: af.apem(MODEL, IMAGES, number(MAPS), max_epsilon=4.0),
    }
    came_of(calls[data.draw(st.sampled_from(sorted(calls)))])
