"""APEM beside the libraries that people explain with: the real ones, which `make test-libraries` installs. Where one is
missing its tests are skipped. Captum, which is always there, is in test_adapters.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import images_and_maps, small_network
from test_adapters import GRID, attributions, expected_scores
from test_metric import assert_same, snapshot

import apem_fast as af
from apem_fast.adapters import quantus as quantus_adapter

pytestmark = pytest.mark.libraries


@pytest.fixture
def quantus():
    return pytest.importorskip("quantus")


@pytest.fixture
def torchcam():
    return pytest.importorskip("torchcam.methods")


# -- Quantus -----------------------------------------------------------------------------------------------------


def test_quantus_takes_it_for_one_of_its_metrics(quantus):
    """Beside one of its own, over attributions that are there and over an explanation that Quantus calls."""
    model, (images, _) = small_network(), images_and_maps(3)
    x, y = images.numpy(), model(images).argmax(dim=1).numpy()
    attribution = attributions(model, images)

    def explained(model, inputs, targets, **_):
        return attributions(model, torch.as_tensor(inputs)).numpy()

    results = quantus.evaluate(
        metrics={"APEM": quantus_adapter.Apem(**GRID), "sparseness": quantus.Sparseness(disable_warnings=True)},
        xai_methods={"given": attribution.numpy(), "called": explained},
        model=model,
        x_batch=x,
        y_batch=y,
        call_kwargs={"call": {"device": "cpu"}},
    )
    expected = expected_scores(model, images, attribution).tolist()
    assert results["given"]["APEM"] == results["called"]["APEM"] == expected
    assert len(results["given"]["sparseness"]) == 3


def test_quantus_wraps_the_model(quantus):
    """What its metrics hand to each other is its own wrapper of the model."""
    model, (images, relevance) = small_network(), images_and_maps(2)
    wrapped = quantus.helpers.utils.get_wrapped_model(model, channel_first=True, softmax=False, device="cpu")
    scores = quantus_adapter.Apem(**GRID)(wrapped, images.numpy(), None, relevance.numpy())
    assert scores == expected_scores(model, images, relevance).tolist()


def test_quantus_has_the_same_accessories(quantus):
    own, ours = quantus.Sparseness(disable_warnings=True), quantus_adapter.Apem()
    for name in ("name", "score_direction", "evaluation_category", "evaluation_scores", "all_evaluation_scores"):
        assert hasattr(own, name) and hasattr(ours, name), name
    assert isinstance(own.get_params, dict) and isinstance(ours.get_params, dict)
    assert str(getattr(own.score_direction, "value", own.score_direction)) in ("higher", "lower")
    assert str(getattr(own.evaluation_category, "value", own.evaluation_category)) == "Complexity"


# -- torch-cam ---------------------------------------------------------------------------------------------------


def cams(torchcam, name: str, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Class activation maps (N, 1, H, W) in [0, 1] of the predictions, at the images' size."""
    with getattr(torchcam, name)(model, target_layer="5", input_shape=(3, 16, 16)) as extract:
        logits = model(images.clone().requires_grad_())
        (maps,) = extract(logits.argmax(dim=1).tolist(), logits)
    return torch.nn.functional.interpolate(maps.detach()[:, None], images.shape[2:], mode="bilinear")


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMpp", "LayerCAM", "XGradCAM"])
def test_maps_of_torch_cam_are_scored_as_they_come(torchcam, name):
    model, (images, _) = small_network(), images_and_maps(3)
    before = snapshot(model, images)
    maps = cams(torchcam, name, model, images)
    result = af.apem(model, images, maps, on_bad_map="flag", **GRID)
    one = [af.apem(model, images[i : i + 1], maps[i : i + 1], on_bad_map="flag", **GRID).score for i in range(3)]
    assert torch.equal(result.score, torch.cat(one))
    assert result.score.isfinite().any()
    assert_same(before, snapshot(model, images))


def test_torch_cams_grad_cam_is_ours(torchcam):
    """Two implementations of one method: the same maps, and so the same scores."""
    model, (images, _) = small_network(), images_and_maps(4)
    both = cams(torchcam, "GradCAM", model, images), af.explain.GradCAM(layer="5")(model, images)[:, :1]
    # torch-cam stretches to [0, 1] before it enlarges.
    theirs, ours = (af.relevance_map(maps, percentile=None) for maps in both)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    assert ours.amax() == 1


def test_a_model_may_still_have_torch_cams_hooks(torchcam):
    model, (images, relevance) = small_network(), images_and_maps(3)
    expected = af.apem(model, images, relevance, **GRID).score
    extract = torchcam.GradCAM(model, target_layer="5", input_shape=(3, 16, 16))
    try:
        assert torch.equal(af.apem(model, images, relevance, **GRID).score, expected)
    finally:
        extract.remove_hooks()
    assert np.isfinite(expected.numpy()).all()
