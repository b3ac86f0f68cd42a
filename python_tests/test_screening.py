"""Verified low precision: the epsilons are float32's, whatever the low precision says."""

from __future__ import annotations

import pytest
import torch
from networks import images_and_maps, small_network
from torch import nn

import apem_fast as af
from apem_fast import screening

GRID = {"max_epsilon": 40.0, "step": 0.25}
LOW = ["bfloat16", "float16"]


class Liar(nn.Module):
    """A classifier that answers differently, and counts its images, when it is run in low precision."""

    def __init__(self, lie):
        super().__init__()
        self.network, self.lie = small_network(), lie
        self.screened = self.exact = 0

    def forward(self, x):
        low = torch.is_autocast_enabled("cpu")
        self.screened, self.exact = self.screened + low * len(x), self.exact + (not low) * len(x)
        with torch.autocast("cpu", enabled=False):
            logits = self.network(x.float())
        return self.lie(logits, x).to(torch.bfloat16) if low else logits


def top(logits):
    return nn.functional.one_hot(logits.argmax(1), logits.shape[1])


LIES = {
    "honest": lambda logits, x: logits,
    "sure of everything": lambda logits, x: logits + 30 * top(logits),
    "sure of the first class": lambda logits, x: logits * 0 + torch.eye(logits.shape[1])[0] * 50,
    "off by a lot": lambda logits, x: logits + torch.linspace(-3, 3, logits.shape[1]),
    "noisy": lambda logits, x: logits + 2 * torch.sin(1e4 * x.sum(dim=(1, 2, 3)))[:, None] * top(logits),
    "not a number": lambda logits, x: logits * torch.nan,
    "not a number here and there": lambda logits, x: torch.where(x.sum(dim=(1, 2, 3))[:, None] > 0, torch.inf, logits),
}


def assert_same_epsilons(one, other):
    for name in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus", "labels"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("batch_size", [3, None])
def test_epsilons_are_those_of_float32(search, precision, batch_size):
    model = small_network()
    images, relevance = images_and_maps(6)
    exact = af.apem(model, images, relevance, search=search, **GRID)
    screened = af.apem(
        model, images, relevance, search=search, precision=precision, batch_size=batch_size, **GRID
    )  # fmt: skip
    assert_same_epsilons(screened, exact)


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
@pytest.mark.parametrize("lie", LIES)
def test_no_lie_changes_an_epsilon(search, lie):
    model = Liar(LIES[lie]).eval()
    images, relevance = images_and_maps(6)
    exact = af.apem(model, images, relevance, search=search, **GRID)
    assert_same_epsilons(af.apem(model, images, relevance, search=search, precision="bfloat16", **GRID), exact)
    assert model.screened > 0


def test_the_screen_spares_float32_passes():
    """In a scan of every grid point most are far from the flip."""
    model = Liar(LIES["honest"]).eval()
    images, relevance = images_and_maps(6)
    af.apem(model, images, relevance, search="exhaustive", **GRID)
    alone, model.exact = model.exact, 0
    af.apem(model, images, relevance, search="exhaustive", precision="bfloat16", **GRID)
    assert model.exact < alone / 2


def test_every_input_is_counted():
    model = Liar(LIES["off by a lot"]).eval()
    images, relevance = images_and_maps(6)
    evaluator = af.Evaluator(model, images, precision="bfloat16", **GRID)
    model.exact = model.screened = 0
    result = evaluator.apem({"relevance": relevance})["relevance"]
    assert int(result.probes.sum()) == model.exact + model.screened


def test_a_screen_that_costs_more_than_it_spares_is_left(monkeypatch):
    monkeypatch.setattr(screening, "ON_TRIAL", 8)
    model = Liar(LIES["noisy"]).eval()
    images, relevance = images_and_maps(6)
    af.apem(model, images, relevance, search="exhaustive", precision="bfloat16", **GRID)
    assert model.screened < model.exact / 2


class Rejects(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("operator is not implemented for 'BFloat16'")
        return self.network(x)


def test_a_model_that_rejects_the_precision():
    images, relevance = images_and_maps(2)
    with pytest.raises(ValueError, match=r'apem: precision="bfloat16" needs a model that runs in it \(got operator is'):
        af.apem(Rejects().eval(), images, relevance, precision="bfloat16", **GRID)


@pytest.mark.parametrize(
    "options, dtype, sentence",
    [
        ({"precision": "int8"}, torch.float32, r"apem: precision must be one of float32, .*, tf32 \(got 'int8'\)"),
        (
            {"precision": "bfloat16"},
            torch.float64,
            r'apem: precision="bfloat16" goes with float32 images \(got float64\)',
        ),
        ({"precision": "tf32"}, torch.float32, r'apem: precision="tf32" needs images on a CUDA device \(got cpu\)'),
    ],
)
def test_bad_precision(options, dtype, sentence):
    images, relevance = images_and_maps(1, dtype=dtype)
    with pytest.raises(ValueError, match=sentence):
        af.apem(small_network(dtype=dtype), images, relevance, **options, **GRID)
