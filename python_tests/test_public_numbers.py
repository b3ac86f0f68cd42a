"""A number of any kind means what a plain one means, in every public function and record that takes numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from networks import images_and_maps, small_network
from rankers import PIXELS, small_ranker

import apem_fast as af
from apem_fast import explain, siamese
from apem_fast.adapters import captum as captum_adapter
from apem_fast.adapters import quantus as quantus_adapter
from apem_fast.experiment.filter.options import FilterOptions
from apem_fast.experiment.run.options import RunOptions
from apem_fast.siamese.results import AttackOptions
from apem_fast.siamese.sanity import cascading_randomisation
from apem_fast.siamese.training import TrainingOptions

KINDS = {
    "int": lambda v: v,
    "numpy.int64": np.int64,
    "numpy.int16": np.int16,
    "numpy.float32": np.float32,
    "numpy.float64": np.float64,
    "Fraction": Fraction,
    "tensor": torch.tensor,
    "float32 tensor": lambda v: torch.tensor(float(v)),
    "numpy array": np.array,
}
WHOLE = ("int", "numpy.int64", "numpy.int16", "tensor", "numpy array")  # what may stand for a count


class Numbers:
    """Makes a real number and a count of some kind out of a whole one."""

    def __init__(self, kind: str):
        self.real = KINDS[kind]
        self.count = KINDS[kind] if kind in WHOLE else int


IMAGES, RELEVANCE = images_and_maps(2)
DIRECTION = RELEVANCE / 100 * torch.ones_like(IMAGES)
SMALL = {"max_epsilon": 20.0}
GREY = torch.linspace(0, 1, 2 * 8 * 8).reshape(2, 1, 8, 8)


def _attack(n: Numbers):
    ranker = small_ranker(dtype=torch.float32)
    images = torch.rand(2, 1, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    options = {"steps": n.count(3), "step_size": n.real(1), "damping": n.real(0), "tv_force": n.real(2)}
    options |= {"precision": n.real(1), "max_distance": n.real(3), "bounds": (n.real(0), n.real(1))}
    return siamese.attack(ranker, images[:1], images[1:], target=n.real(1), batch_size=n.count(2), **options).perturbed


def _torchmetrics(n: Numbers):
    pytest.importorskip("torchmetrics")
    from apem_fast.adapters.torchmetrics import Apem

    metric = Apem(small_network(), max_epsilon=n.real(20), step=n.real(2), batch_size=n.count(4))
    metric.update(IMAGES, RELEVANCE)
    return metric.result().score


def _quantus(n: Numbers):
    metric = quantus_adapter.Apem(max_epsilon=n.real(20), step=n.real(2), percentile=n.real(90))
    labels = small_network()(IMAGES).argmax(1)
    return torch.tensor(metric(small_network(), IMAGES, labels, RELEVANCE, batch_size=n.count(1)))


def _randomised(n: Numbers):
    options = {"stages": ["9"], "apem": {"max_epsilon": n.real(20), "step": n.real(2)}}
    result = af.parameter_randomisation(small_network(), IMAGES, explain.Gradient(), seed=n.count(3), **options)
    return torch.cat([result.rank_correlation, result.score])


def _pair(n: Numbers):
    images = torch.rand(2, 1, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    options = {"target": n.real(1), "steps": n.count(3), "step_size": n.real(1), "precision": n.real(1)}
    options |= {"mean": [n.real(0)], "std": [n.real(1)], "segments": n.count(9), "tv_force": n.real(0)}
    explained = siamese.explain_pair(small_ranker(dtype=torch.float32), images[0], images[1], **options)
    return torch.cat([explained.perturbed.flatten(), explained.pictures["super-pixels"].flatten()])


def _sanity(n: Numbers):
    ranker = small_ranker(dtype=torch.float32)
    images = torch.rand(2, 2, 1, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))

    def maps(model, first, second):
        return {"score": model(first, second)[:, None, None, None] * first}

    check = cascading_randomisation(ranker, images[0], images[1], maps, seed=n.count(2))
    passed = check.passes("score", criterion=n.real(1)), check.passes("score", criterion=n.real(0))
    return torch.cat([check.correlation["score"].flatten(), torch.tensor(passed).double()])


CALLS = {
    "torchmetrics": _torchmetrics,
    "quantus": _quantus,
    "captum": lambda n: captum_adapter.apem(
        small_network(), IMAGES, RELEVANCE, max_examples_per_batch=n.count(3), percentile=n.real(90), step=n.real(2)
    ),
    "captum, a target": lambda n: captum_adapter.apem(
        small_network(), IMAGES[:1], RELEVANCE[:1], target=n.count(int(small_network()(IMAGES[:1]).argmax()))
    ),
    "parameter_randomisation": _randomised,
    "explain_pair": _pair,
    "cascading_randomisation": _sanity,
    "apem": lambda n: (
        af.apem(small_network(), IMAGES, RELEVANCE, max_epsilon=n.real(20), step=n.real(2), batch_size=n.count(4)).score
    ),
    "minimum_epsilon": lambda n: (
        af.minimum_epsilon(
            small_network(), IMAGES, DIRECTION, max_epsilon=n.real(20), step=n.real(2), bounds=(n.real(-9), n.real(9))
        ).epsilon
    ),
    "apem_norm": lambda n: (
        af.apem_norm(small_network(), IMAGES, RELEVANCE, shuffles=n.count(2), max_epsilon=n.real(20)).score
    ),
    "filter_relevance": lambda n: (
        af.filter_relevance(
            small_network(), IMAGES, RELEVANCE, levels=n.count(4), min_drop=n.real(1), patience=n.count(2), **SMALL
        ).relevance
    ),
    "audit": lambda n: torch.as_tensor(
        af.audit(af.Evaluator(small_network(), IMAGES, **SMALL), RELEVANCE, rays=n.count(2), seed=n.count(1)).rays
    ),
    "relevance_map": lambda n: af.relevance_map(DIRECTION.exp(), percentile=n.real(90)),
    "selectivity": lambda n, model=None: (
        af.selectivity(
            model or small_network(), IMAGES, RELEVANCE, steps=n.count(5), baseline=n.real(1), batch_size=n.count(3)
        ).area
    ),
    "continuity": lambda n, model=None: (
        af.continuity(
            model or small_network(),
            IMAGES,
            explain.Gradient(),
            neighbours=n.count(2),
            distance=n.real(1),
            seed=n.count(3),
        ).ratio
    ),
    "SmoothGrad": lambda n, model=None: explain.SmoothGrad(
        samples=n.count(2), sigma=n.real(1), seed=n.count(3), batch_size=n.count(2)
    )(model or small_network(), IMAGES),
    "IntegratedGradients": lambda n: explain.IntegratedGradients(steps=n.count(2), baseline=n.real(1))(
        small_network(), IMAGES
    ),
    "Occlusion": lambda n: explain.Occlusion(window=n.count(8), stride=n.count(8), value=n.real(1))(
        small_network(), IMAGES
    ),
    "RISE": lambda n: explain.RISE(samples=n.count(4), cells=n.count(3), seed=n.count(2))(small_network(), IMAGES),
    "perturb": lambda n: af.ops.perturb(IMAGES, DIRECTION, torch.ones(2), lower=n.real(-1), upper=n.real(1)),
    "attack_penalty": lambda n: af.ops.attack_penalty(GREY, GREY.flip(0), n.real(1), n.real(2), n.real(3))[0],
    "attack_step": lambda n: af.ops.attack_step(
        GREY, GREY.flip(2), GREY.flip(3), None, n.real(1), n.real(2), lower=n.real(0), upper=n.real(1)
    ),
    "ops.relevance_map": lambda n: af.ops.relevance_map(DIRECTION.exp(), percentile=n.real(90)),
    "attack": _attack,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_number_of_any_kind_means_the_same(call):
    expected = CALLS[call](Numbers("int"))
    other = []
    for kind in KINDS:
        try:
            same = torch.equal(CALLS[call](Numbers(kind)), expected)
        except Exception as error:
            other.append(f"{kind}: {type(error).__name__}: {error}")
            continue
        if not same:
            other.append(f"{kind}: another result")
    assert not other, "\n".join(other)


@pytest.mark.parametrize("kind", KINDS)
def test_records_hold_plain_numbers(kind):
    n = Numbers(kind)
    records = [
        RunOptions(
            network="reliability.commands:network",
            step=n.real(1),
            max_epsilon=n.real(9),
            limit=n.count(3),
            count=n.count(2),
            seed=n.count(1),
            percentile=n.real(90),
            shuffles=n.count(2),
            block=n.count(2),
            pictures=n.count(3),
        ),
        FilterOptions(levels=n.count(3), min_drop=n.real(1), patience=n.count(2)),
        TrainingOptions(steps=n.count(3), images=n.count(2), learning_rate=n.real(1), seed=n.count(4)),
        AttackOptions(steps=n.count(3), step_size=n.real(1), perceptions_at=(n.count(1),)),
        explain.SmoothGrad(samples=n.count(3), sigma=n.real(1)),
    ]
    for record in records:
        for name, value in vars(record).items():
            for one in value if isinstance(value, tuple) else (value,):
                plain = one is None or type(one) in (int, float, str, bool)
                assert plain or name in ("policy", "search", "checkpoint"), (type(record), name, value)


@pytest.mark.parametrize("call", ["SmoothGrad", "selectivity", "continuity"])
def test_a_nan_is_no_prediction(call):
    """Its index was once taken for the greatest logit's, and another class explained without a word."""
    for failing in range(6):  # at any of the first calls: which of them predicts is the function's own affair
        model, calls = small_network(), []

        def spoilt(module, inputs, logits, failing=failing, calls=calls):
            calls.append(1)
            return logits * float("nan") if len(calls) == failing + 1 else logits

        model.register_forward_hook(spoilt)
        with pytest.raises((ValueError, RuntimeError), match=r"NaN|same image in the same way|each image by itself"):
            CALLS[call](Numbers("int"), model)
