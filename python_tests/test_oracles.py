"""Answers that are known without a scan: networks that are linear in pieces, traced, and built with a dip."""

from __future__ import annotations

import math

import pytest
import torch
from lines import first_flip, with_a_dip
from networks import images_and_maps, small_network
from torch import nn

import apem_fast as af

STEP, LAST = 1 / 8, 240


def directions(evaluator: af.Evaluator, relevance: torch.Tensor) -> list[torch.Tensor]:
    """The two directions of each image, as the paper has them."""
    both = []
    for n in range(len(relevance)):
        for values in (relevance[n : n + 1], 1 - relevance[n : n + 1]):
            values = values.expand_as(evaluator.images[n : n + 1])
            both.append(values / values.sum() * evaluator.sign_gradient[n].double())
    return both


def dense() -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        layers = [nn.Flatten(), nn.Linear(768, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 6)]
        return nn.Sequential(*layers).double().eval().requires_grad_(False)


NETWORKS = {"dense": dense, "convolutions": lambda: small_network(1, dtype=torch.float64).requires_grad_(False)}


@pytest.mark.parametrize("search", ["isolate", "fast", "careful", "exhaustive", "certified"])
@pytest.mark.parametrize("name", NETWORKS)
def test_flips_are_where_a_trace_of_every_bend_says(name, search):
    network = NETWORKS[name]()
    images, relevance = images_and_maps(3, dtype=torch.float64)
    evaluator = af.Evaluator(network, images, step=STEP, max_epsilon=STEP * LAST, search=search)
    result = evaluator.apem({"maps": relevance})["maps"]
    epsilon = torch.stack([result.epsilon_minus, result.epsilon_plus], dim=1).flatten().tolist()
    flipped = torch.stack([result.flipped_minus, result.flipped_plus], dim=1).flatten().tolist()
    known = 0
    for ray, direction in enumerate(directions(evaluator, relevance)):
        image = images[ray // 2 : ray // 2 + 1]
        at, label, k = 0.0, int(network(image).argmax()), LAST + 1
        at = first_flip(network, image, direction, STEP * LAST)
        if at < math.inf:  # the first grid point beyond it flips, unless the label is back by then
            k = math.ceil(at / STEP)
            while k <= LAST and int(network(image + k * STEP * direction).argmax()) == label:
                k += 1
        assert flipped[ray] == (k <= LAST) and epsilon[ray] == min(k, LAST) * STEP
        known += k <= LAST
    assert known


@pytest.mark.parametrize("width", [0.4, 3.0, 20.0, 60.0])
@pytest.mark.parametrize("search", ["exhaustive", "certified", "careful", "isolate"])
def test_a_dip_with_a_grid_point_is_found_by_scans_and_proofs_and_by_the_search_if_it_is_wide(search, width):
    network = with_a_dip(start=100.5, width=width, depth=3.0, end=400.5)
    image, relevance = torch.zeros(1, 1, 4, 4).double(), torch.full((1, 1, 4, 4), 0.5).double()
    assert first_flip(network, image, torch.full((1, 1, 4, 4), 1 / 16).double(), 600.0) == pytest.approx(100.5)
    result = af.apem(network, image, relevance, max_epsilon=600.0, search=search)
    dip = 101.0 if width > 0.5 else 402.0
    if search in ("exhaustive", "certified") or width == 60:
        assert result.epsilon_minus.item() == dip
    else:
        assert result.epsilon_minus.item() in (dip, 402.0)  # never anything but a flip


def test_the_trace_refuses_what_is_not_linear_in_pieces():
    with pytest.raises(TypeError, match="no piecewise linear layer: Tanh"):
        first_flip(nn.Sequential(nn.Tanh()), torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), 1.0)
