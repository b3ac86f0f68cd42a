"""Tensors whose values do not simply lie in memory, and models whose answers are no logits: refused in one sentence, or
warned of, by every function; never another number without a word."""

from __future__ import annotations

import copy
import math
import pickle
from contextlib import contextmanager

import pytest
import torch
from networks import Changed, images_and_maps, small_network
from rankers import PIXELS, small_ranker
from torch import nn

import apem_fast as af
from apem_fast import explain, siamese

IMAGES, MAPS = images_and_maps(2)
CALLS = {
    "apem": lambda model, images=IMAGES, maps=MAPS: af.apem(model, images, maps, max_epsilon=8, step=1),
    "apem_norm": lambda model, images=IMAGES, maps=MAPS: af.apem_norm(
        model, images, maps, shuffles=2, max_epsilon=8, step=1
    ),
    "filter_relevance": lambda model, images=IMAGES, maps=MAPS: af.filter_relevance(
        model, images, maps, levels=3, max_epsilon=8, step=1
    ),
    "selectivity": lambda model, images=IMAGES, maps=MAPS: af.selectivity(model, images, maps, steps=2),
    "continuity": lambda model, images=IMAGES, maps=None: af.continuity(
        model, images, explain.Gradient(), neighbours=2
    ),
    "Gradient": lambda model, images=IMAGES, maps=None: explain.Gradient()(model, images),
    "RISE": lambda model, images=IMAGES, maps=None: explain.RISE(samples=2)(model, images),
}
WITH_MAPS = [name for name in CALLS if CALLS[name].__defaults__[1] is not None]
STRANGE = {
    "dense, sparse_coo is not": torch.Tensor.to_sparse,
    "lazily negated": lambda tensor: torch._neg_view(-tensor),
}


@pytest.mark.parametrize("words", STRANGE)
@pytest.mark.parametrize("call", CALLS)
def test_images_whose_values_do_not_simply_lie_in_memory(call, words):
    with pytest.raises(TypeError, match=f"^{call}: images must be .*{words}") as error:
        CALLS[call](small_network(), STRANGE[words](IMAGES))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", STRANGE)
@pytest.mark.parametrize("call", WITH_MAPS)
def test_maps_whose_values_do_not_simply_lie_in_memory(call, words):
    with pytest.raises(TypeError, match=f"^{call}: relevance must be .*{words}") as error:
        CALLS[call](small_network(), IMAGES, STRANGE[words](MAPS))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call", CALLS)
def test_images_on_another_device_than_the_model(call):
    with pytest.raises(ValueError, match=f"^{call}: images must be on the model's device, cpu"):
        CALLS[call](small_network(), IMAGES.to("meta"))


@pytest.mark.parametrize("call", CALLS)
def test_an_infinite_logit_is_no_prediction(call, recwarn):
    """It would be the greatest for every image, and explained for every image."""
    infinite = torch.tensor([math.inf] + 9 * [0.0])
    with pytest.raises(ValueError, match=r"model must (not )?return .*infinity"):
        CALLS[call](Changed(small_network(), lambda logits: logits + infinite))
    assert not recwarn


@pytest.mark.parametrize("call", CALLS)
def test_probabilities_are_warned_of(call):
    with pytest.warns(UserWarning, match="rows that lie in .0, 1. and sum to 1, which look like probabilities"):
        CALLS[call](Changed(small_network(), lambda logits: logits.softmax(dim=1)))


def test_how_far_answers_differ_is_a_share_of_the_greatest():
    with pytest.raises(ValueError, match=r"differ by (0\.\d+|1|2) of the greatest"):
        CALLS["apem"](Changed(small_network(), lambda logits: logits - logits.mean(dim=0)))


def test_a_model_that_treats_the_places_of_a_batch_differently():
    with pytest.raises(ValueError, match="model must answer each image by itself"):
        CALLS["apem"](Changed(small_network(), lambda logits: logits * torch.arange(1, len(logits) + 1)[:, None]))


# -- what surrounds a call ---------------------------------------------------------------------------------------------


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


METHODS = ("gradient", "smooth-grad:samples=2", "integrated-gradients:steps=2", "occlusion:window=8:stride=8")
METHODS += ("rise:samples=2", "random", "centered-gaussian", "edge", "grad-cam")
AROUND = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("context", AROUND)
@pytest.mark.parametrize("method", METHODS)
def test_a_map_does_not_depend_on_what_surrounds_the_call(method, context):
    explainer, model = explain.explainer_from(method), small_network()
    expected = explainer(model, IMAGES)
    with AROUND[context]():
        came = explainer(model, IMAGES)
    assert torch.equal(came, expected) and came.dtype == expected.dtype


# -- what is written after an evaluator was made -----------------------------------------------------------------------


def evaluator(model, images=IMAGES):
    return af.Evaluator(model, images, max_epsilon=8, step=1)


def test_weights_that_were_written_after_the_evaluator_was_made():
    """Its labels and gradients are of a network that is there no more."""
    model, expected = small_network(), evaluator(small_network(seed=1)).apem({"one": MAPS})["one"]
    made = evaluator(model)
    made.apem({"one": MAPS})
    model.load_state_dict(small_network(seed=1).state_dict())
    with pytest.raises(ValueError, match=r"^Evaluator\.apem: model must have the weights"):
        made.apem({"one": MAPS})
    assert made.on(IMAGES).apem({"one": MAPS})["one"] == expected  # looks at the model again
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())
    with pytest.raises(ValueError, match=r"^Evaluator\.apem: model must have the weights"):
        made.apem({"one": MAPS})


def test_images_that_were_written_after_the_evaluator_was_made():
    images = IMAGES.clone()
    made = evaluator(small_network(), images)
    made.apem({"one": MAPS})
    images += 1
    with pytest.raises(ValueError, match=r"^Evaluator\.apem: images must have the values"):
        made.apem({"one": MAPS})


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_of_an_evaluator_goes_on(copied):
    made = evaluator(small_network())
    assert copied(made).apem({"one": MAPS})["one"] == made.apem({"one": MAPS})["one"]


# -- rankers -----------------------------------------------------------------------------------------------------------

PAIR = torch.rand(2, 2, 1, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
ATTACKS = {
    "attack": lambda ranker, first=PAIR[0], second=PAIR[1], target=0.9: siamese.attack(
        ranker, first, second, target, steps=2, step_size=1.0
    ),
    "one_step_attack": lambda ranker, first=PAIR[0], second=PAIR[1], target=0.9: siamese.one_step_attack(
        ranker, first, second, target
    ),
}


def ranker_in_float32():
    return small_ranker(dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "change, words",
    [
        (torch.Tensor.to_sparse, "first must be dense, sparse_coo is not"),
        (lambda first: torch._neg_view(-first), "first must be a tensor of its own values"),
        (lambda first: first.numpy(), r"first must be a torch\.Tensor \(got ndarray\)"),
        (lambda first: first.to("meta"), "first must be on ranker's device, cpu"),
        (torch.Tensor.half, r"first must be torch\.float32 like ranker \(got torch\.float16\)"),
        (lambda first: first[..., :-4], "images must be of a size that ranker takes"),
    ],
)
@pytest.mark.parametrize("call", ATTACKS)
def test_pairs_that_no_ranker_can_rank(call, change, words):
    with pytest.raises((TypeError, ValueError), match=f"^{call}: {words}") as error:
        ATTACKS[call](ranker_in_float32(), change(PAIR[0]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("target", [True, "0.5", None])
@pytest.mark.parametrize("call", ATTACKS)
def test_a_target_is_a_number(call, target):
    with pytest.raises(TypeError, match=f"^{call}: target must be a number, or one for each pair"):
        ATTACKS[call](ranker_in_float32(), target=target)


@pytest.mark.parametrize("call", ATTACKS)
def test_a_ranker_without_a_gradient(call):
    ranker = ranker_in_float32()
    real = ranker.rank_embeddings
    ranker.rank_embeddings = lambda *embeddings: real(*embeddings).detach()
    with pytest.raises(ValueError, match=rf"^{call}: ranker must be differentiable \(got a ranking without a gradient"):
        ATTACKS[call](ranker)


@pytest.mark.parametrize("context", AROUND)
@pytest.mark.parametrize("call", ATTACKS)
def test_an_attack_does_not_depend_on_what_surrounds_it(call, context):
    ranker = ranker_in_float32()
    expected = ATTACKS[call](ranker).perturbed
    with AROUND[context]():
        assert torch.equal(ATTACKS[call](ranker).perturbed, expected)
