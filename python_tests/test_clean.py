"""Gradients of single images as captured graphs, by a stand-in for the capture: the lanes, the comparison, the way
back. And evaluators that share what was found out. What probes answer is tested with the metric."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from networks import images_and_maps, small_network
from torch import nn

import apem_fast as af
from apem_fast.running import clean
from apem_fast.running.clean import GraphedGradients, ModelOutputError, run_clean

GRID = {"max_epsilon": 40.0, "step": 0.25}


class Stream:
    """Does nothing, but one must wait for another before it is used, and be waited for afterwards."""

    log: list[tuple[str, int, int]] = []

    def __init__(self, device=None):
        self.number = len(Stream.made)
        Stream.made.append(self)

    made: list[Stream] = []

    def wait_stream(self, other):
        Stream.log.append(("waits", self.number, other.number))


@pytest.fixture
def stand_in(monkeypatch):
    """Captures by calling the function; says how often that was done and which graph answered."""
    Stream.log, Stream.made = [], []
    here = Stream()
    said = {"captures": 0, "replays": []}

    def captured(function, static, stream, pool):
        said["captures"] += 1

        def replay(values):
            assert values.shape == static.shape and values.stride() == static.stride()
            static.copy_(values)
            said["replays"].append(stream.number)
            return tuple(result.clone() for result in function(static))

        return replay

    monkeypatch.setattr(clean, "captured", captured)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: here)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    return said


def assert_same(one: clean.Clean, other: clean.Clean) -> None:
    for name in ("labels", "logits", "sign", "loss_gradient"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.margin == other.margin).all()


@pytest.mark.parametrize("count, lanes", [(7, 0), (8, 1), (19, 2), (40, 4)])
def test_lanes_give_the_bits_of_the_plain_model(stand_in, count, lanes):
    model = small_network()
    images, _ = images_and_maps(count)
    graphed = GraphedGradients(model)
    assert_same(run_clean(model, images, graphed), run_clean(model, images))
    assert stand_in["captures"] == lanes
    replays = stand_in["replays"][lanes:]  # the first ones are comparisons
    assert len(replays) == (count if lanes else 0) and len(set(replays)) == lanes
    # Each lane waits for what came before, and what comes after waits for each lane.
    for number in set(replays):
        assert ("waits", number, 0) in Stream.log and ("waits", 0, number) in Stream.log[-lanes:]


def test_lanes_stay_for_other_images_until_the_weights_move(stand_in):
    model = small_network()
    images, _ = images_and_maps(16)
    graphed = GraphedGradients(model)
    run_clean(model, images, graphed)
    run_clean(model, images.flip(0), graphed)
    assert stand_in["captures"] == 2
    model[0].weight = nn.Parameter(model[0].weight * 2)
    assert_same(run_clean(model, images, graphed), run_clean(model, images))
    assert stand_in["captures"] == 4


def test_a_graph_that_answers_otherwise_is_given_up_and_said(stand_in, monkeypatch):
    model = small_network()
    images, _ = images_and_maps(8)
    right = clean.captured

    def wrong(function, example, stream, pool):
        return lambda values: tuple(result * (1 + 1e-6) for result in right(function, example, stream, pool)(values))

    monkeypatch.setattr(clean, "captured", wrong)
    graphed = GraphedGradients(model)
    with pytest.warns(
        RuntimeWarning, match="gradient in a CUDA graph failed, the plain model runs instead .*to the bit"
    ):
        assert_same(run_clean(model, images, graphed), run_clean(model, images))
    captures = stand_in["captures"]
    assert_same(run_clean(model, images, graphed), run_clean(model, images))
    assert stand_in["captures"] == captures


def test_what_the_model_does_wrong_is_not_blamed_on_the_capture(stand_in):
    images, _ = images_and_maps(8)
    with pytest.raises(ModelOutputError, match="must return logits"):
        run_clean(nn.Flatten(0), images, GraphedGradients(nn.Flatten(0)))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_one_gradient_that_is_not_finite_is_an_error(bad):
    class Steep(nn.Module):
        def forward(self, x):
            high, same = x.detach() > 9, x * 1
            if same.requires_grad:
                same.register_hook(lambda gradient: torch.where(high, bad, gradient))
            return torch.stack([x.sum(dim=(1, 2, 3)), 2 * same.sum(dim=(1, 2, 3))], 1)

    images, _ = images_and_maps(4)
    assert run_clean(Steep(), images).logits.shape == (4, 2)
    images[2, 0, 0, 0] = 10.0
    with pytest.raises(ModelOutputError, match="finite gradient"):
        run_clean(Steep(), images)


# -- evaluators that share ---------------------------------------------------------------------------------------


def test_other_images_by_the_same_evaluator():
    model = small_network()
    images, relevance = images_and_maps(6)
    first = af.Evaluator(model, images[:2], **GRID)
    first.apem({"maps": relevance[:2]})
    other = first.on(images[2:])
    result, alone = other.apem({"maps": relevance[2:]})["maps"], af.apem(model, images[2:], relevance[2:], **GRID)
    assert torch.equal(result.epsilon_minus, alone.epsilon_minus) and torch.equal(
        result.epsilon_plus, alone.epsilon_plus
    )
    assert torch.equal(other.logits.argmax(1), other.labels) and len(first.labels) == 2
    assert other._tuner is first._tuner and other._runner is first._runner


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda x: x[:, :, :8],
            r"Evaluator.on: images must have shape \(N, 3, 16, 16\) and torch.float32 .*\(2, 3, 8, 16\)",
        ),
        (lambda x: x.double(), "Evaluator.on: images"),
        (lambda x: x * torch.nan, "Evaluator.on: images"),
        (lambda x: None, "Evaluator.on: images"),
    ],
    ids=["shape", "dtype", "nan", "none"],
)
def test_images_of_another_kind_are_refused(change, message):
    images, _ = images_and_maps(2)
    evaluator = af.Evaluator(small_network(), images, **GRID)
    with pytest.raises((TypeError, ValueError), match=message):
        evaluator.on(change(images))


def test_a_layer_exchanged_between_searches_is_seen():
    """For one of another shape, so that nothing could be compared with what was copied."""
    model = small_network()
    images, relevance = images_and_maps(4)
    evaluator = af.Evaluator(model, images, batch_size=4, **GRID)
    evaluator.apem({"maps": relevance})
    torch.manual_seed(1)
    model[4] = nn.Conv2d(8, 16, 5, padding=2).eval()
    result, fresh = evaluator.on(images).apem({"maps": relevance})["maps"], af.apem(model, images, relevance, **GRID)
    assert torch.equal(result.epsilon_minus, fresh.epsilon_minus) and torch.equal(
        result.epsilon_plus, fresh.epsilon_plus
    )


def test_weights_changed_between_searches_are_seen():
    """Copies in another memory format are kept from search to search, but not beyond what they are copies of."""
    model = small_network()
    images, relevance = images_and_maps(4)
    evaluator = af.Evaluator(model, images, batch_size=4, **GRID)
    evaluator.apem({"maps": relevance})
    other = copy.deepcopy(model)
    with torch.no_grad():
        model[4].weight.mul_(1.5)
        other[4].weight.mul_(1.5)
    result, fresh = evaluator.on(images).apem({"maps": relevance})["maps"], af.apem(other, images, relevance, **GRID)
    assert torch.equal(result.epsilon_minus, fresh.epsilon_minus) and torch.equal(
        result.epsilon_plus, fresh.epsilon_plus
    )
