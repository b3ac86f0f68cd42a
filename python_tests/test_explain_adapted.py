"""Captum's methods and functions of one's own as explainers, and their names on the command line."""

from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients, KernelShap, LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

from apem_fast import explain


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)
        ).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def times_strength(model: nn.Module, images: Tensor, labels: Tensor, strength: float = 1.0) -> Tensor:
    return strength * labels.view(-1, 1, 1) * images.sum(dim=1)


def random_map(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return torch.rand_like(images)


def test_captum_methods_give_what_captum_gives(model, images):
    labels = model(images).argmax(1)
    for method, options in ((IntegratedGradients, {"n_steps": 7}), (Saliency, {"abs": False})):
        expected = method(model).attribute(images.clone(), target=labels, **options)
        torch.testing.assert_close(explain.from_captum(method, **options)(model, images), expected, check_dtype=False)
    occlusion = explain.from_captum(Occlusion, sliding_window_shapes=(3, 3, 3), batch_size=2)
    expected = Occlusion(model).attribute(images, (3, 3, 3), target=labels)
    torch.testing.assert_close(occlusion(model, images), expected)


def test_low_resolution_maps_are_enlarged_to_every_channel(model, images):
    method = explain.from_captum(lambda model: LayerGradCam(model, model[0]), name="Grad-CAM of Captum")
    map_ = method(model, images)
    assert map_.shape == images.shape and torch.equal(map_[:, 0], map_[:, 1])
    assert map_.clamp(min=0).amax() > 0 and method.name == "Grad-CAM of Captum"


@pytest.mark.parametrize(
    "method", [explain.from_callable(random_map), explain.from_captum(KernelShap, n_samples=5)], ids=lambda m: m.name
)
def test_random_methods_are_reproducible_and_independent_of_the_batch(method, model, images):
    together = method(model, images)
    torch.rand(3)
    assert torch.equal(together, method(model, images))
    assert torch.equal(together, torch.cat([method(model, image[None]) for image in images]))
    state = torch.get_rng_state()
    method(model, images)
    assert torch.equal(state, torch.get_rng_state())


def test_another_seed_draws_other_numbers(model, images):
    first, second = (explain.from_callable(random_map, seed=seed)(model, images) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_functions_get_labels_and_options(model, images):
    labels = torch.tensor([0, 1, 3])
    method = explain.from_callable(times_strength, strength=2.0, batch_size=2)
    expected = (2.0 * labels.view(-1, 1, 1) * images.sum(1))[:, None].expand(images.shape)
    torch.testing.assert_close(method(model, images, labels), expected)
    assert method.options == {
        "method": "test_explain_adapted.times_strength",
        "strength": 2.0,
        "seed": 0,
        "batch_size": 2,
    }


@pytest.mark.parametrize(
    "specification",
    [
        "captum.attr.IntegratedGradients",
        "captum.attr.IntegratedGradients:n_steps=20",
        "captum.attr.Occlusion:sliding_window_shapes=(3, 8, 8):strides=4",
        "captum.attr.KernelShap:seed=3:n_samples=5",
        "test_explain_adapted.times_strength:name=Mine:strength=0.5",
        "lrp:rule=alpha-beta:alpha=1.0:beta=0.0",
        "lrp:rule=naive:bias=False",
        "guided-grad-cam:layer=features.28",
    ],
)
def test_names_go_there_and_back(specification):
    explainer = explain.explainer_from(specification)
    assert explain.key_of(explainer) == specification
    assert explain.explainer_from(explain.key_of(explainer)) == explainer


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: explain.explainer_from("captum.attr.Integrated"), ValueError, "cannot be imported"),
        (lambda: explain.explainer_from("no_such_package.method"), ValueError, "cannot be imported"),
        (lambda: explain.explainer_from("torch.pi"), ValueError, "torch.pi: from_callable: function must be callable"),
        (lambda: explain.explainer_from("lrp:relative=maybe"), ValueError, "relative must be True or False"),
        (lambda: explain.key_of(explain.from_callable(lambda *_: None)), ValueError, "importable"),
        (lambda: explain.from_captum(Saliency(lambda x: x)), TypeError, "class of captum.attr"),
        (lambda: explain.from_callable(3), TypeError, "must be callable"),
        (lambda: explain.from_callable(random_map, batch_size=0), ValueError, "random_map: batch_size"),
    ],
)
def test_bad_descriptions_get_one_sentence(make, error, words):
    with pytest.raises(error, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "function, error, words",
    [
        (lambda model, images, labels: None, TypeError, "must return a tensor"),
        (lambda model, images, labels: images[:, :2], ValueError, r"\(got \(1, 2, 9, 9\)\)"),
        (lambda model, images, labels: images[:0], ValueError, r"\(got \(0, 3, 9, 9\)\)"),
        (lambda model, images, labels: images * float("nan"), RuntimeError, "finite"),
    ],
)
def test_bad_results_get_one_sentence(function, error, words, model, images):
    with pytest.raises(error, match=words):
        explain.from_callable(function, name="Mine")(model, images)


def test_a_vision_transformer_is_explained_by_the_gradient_methods():
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = models.VisionTransformer(
            image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
        ).eval()
        nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
        images = torch.randn(2, 3, 16, 16)
    methods = [
        explain.Gradient(),
        explain.SmoothGrad(samples=3),
        explain.from_captum(IntegratedGradients, n_steps=3),
        explain.LRP(),
    ]
    for method in methods:
        map_ = method(model, images)
        assert (map_ != 0).all(dim=1).any() and map_.isfinite().all(), method.name
    with pytest.raises(ValueError, match="must have ReLUs"):
        explain.GuidedBackprop()(model, images)
