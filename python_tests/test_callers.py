"""An error begins with the name of the function that the user called, however deep it is raised."""

from __future__ import annotations

import warnings

import pytest
import torch

import apem_fast as af
from apem_fast import audit, callers
from apem_fast.adapters import captum, quantus, torchmetrics
from apem_fast.margin_curve import RayView, margin_curve
from apem_fast.metric.normalised import shuffled_epsilons

MAPS = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
PIXELS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Network(torch.nn.Module):
    """Three classes, by the mean of each channel."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


def evaluator():
    return af.Evaluator(Network().eval(), PIXELS, max_epsilon=4)


CALLS = {
    "apem": lambda model, images, maps: af.apem(model, images, maps),
    "apem_norm": lambda model, images, maps: af.apem_norm(model, images, maps, shuffles=1),
    "minimum_epsilon": lambda model, images, maps: af.minimum_epsilon(model, images, torch.ones_like(images)),
    "filter_relevance": lambda model, images, maps: af.filter_relevance(model, images, maps),
    "Evaluator": lambda model, images, maps: af.Evaluator(model, images),
    "RayView": lambda model, images, maps: RayView(model, images, maps),
    "margin_curve": lambda model, images, maps: margin_curve(model, images, maps, torch.ones(1)),
    "selectivity": lambda model, images, maps: af.selectivity(model, images, maps),
    "continuity": lambda model, images, maps: af.continuity(model, images, af.explain.Gradient()),
    "parameter_randomisation": lambda model, images, maps: af.parameter_randomisation(
        model, images, af.explain.Gradient()
    ),
    "data_randomisation": lambda model, images, maps: af.data_randomisation(
        model, Network().eval(), images, af.explain.Gradient()
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_function_speaks_in_its_own_name(name):
    for model, images, error in (
        (Network().train(), PIXELS, ValueError),
        (Network().eval(), PIXELS[0], ValueError),
        (Network().eval(), PIXELS * torch.nan, ValueError),
        (print, PIXELS, TypeError),
    ):
        with pytest.raises(error, match=f"^{name}: (model|images) must "):
            CALLS[name](model, images, MAPS)


@pytest.mark.parametrize("name", ["apem", "apem_norm", "filter_relevance", "RayView", "margin_curve"])
def test_also_of_the_maps_and_the_options(name):
    with pytest.raises(ValueError, match=f"^{name}: relevance must lie in "):
        CALLS[name](Network().eval(), PIXELS, 2 * MAPS)


METHODS = {
    "Evaluator.on": lambda: evaluator().on(PIXELS[:, :, 1:]),
    "Evaluator.apem": lambda: evaluator().apem({"mine": -MAPS}),
    "Evaluator.minimum_epsilon": lambda: evaluator().minimum_epsilon(torch.zeros_like(PIXELS)),
    "RayView.margins": lambda: RayView(Network().eval(), PIXELS, MAPS).margins(-torch.ones(1)),
    "shuffled_epsilons": lambda: shuffled_epsilons(evaluator(), MAPS, shuffles=0),
    "audit": lambda: audit(evaluator(), MAPS, rays=0),
    "Apem": lambda: quantus.Apem(step=0),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_their_class(name):
    with pytest.raises(ValueError, match=f"^{name}: [a-z_]+ must "):
        METHODS[name]()


def test_adapters_speak_in_the_name_of_what_is_called():
    with pytest.raises(ValueError, match=r"^apem: model must be in eval mode"):
        captum.apem(Network().train(), PIXELS, MAPS)
    with pytest.raises(ValueError, match=r"^Apem\.update: relevance must lie in "):
        torchmetrics.Apem(Network().eval()).update(PIXELS, 2 * MAPS)


def test_a_name_ends_with_its_call():
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^apem: step must be positive"):
            af.apem(Network().eval(), PIXELS, MAPS, step=-1)
        assert callers.sentence("it") == "apem_fast: it"
    with callers.said_by("outer"), callers.said_by("inner"):
        assert callers.sentence("it") == "outer: it"


def test_a_warning_points_at_the_line_that_called():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        af.apem(Network().eval(), 200 * PIXELS, MAPS, max_epsilon=2)
        af.Evaluator(Network().eval(), PIXELS, max_epsilon=1e9)
    said = [(str(one.message).partition(" ")[0], one.filename) for one in caught if one.category is UserWarning]
    assert said == [("apem:", __file__), ("Evaluator:", __file__)]
