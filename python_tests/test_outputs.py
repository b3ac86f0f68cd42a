"""Models as they come: what is read as logits, and what is refused or warned of in one sentence."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import apem_fast as af
from apem_fast.margin_curve import RayView

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
MAPS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def network(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes)
        ).eval()


class Returns(nn.Module):
    """A network whose logits come wrapped in something."""

    def __init__(self, wrap, classes: int = 3):
        super().__init__()
        self.inner, self.wrap = network(classes), wrap
        self.eval()

    def forward(self, images: Tensor) -> object:
        return self.wrap(self.inner(images))


READ = [
    lambda logits: SimpleNamespace(logits=logits, loss=None),
    lambda logits: {"features": logits * 2, "logits": logits},
    lambda logits: (logits, logits * 2),
    lambda logits: [logits],
]


@pytest.mark.parametrize("wrap", READ)
def test_logits_are_found_in_what_libraries_return(wrap):
    plain, wrapped = network(), Returns(wrap)
    expected, came = (af.apem(model, X, MAPS, max_epsilon=64) for model in (plain, wrapped))
    assert torch.equal(came.score, expected.score)
    for method in (af.explain.Gradient(), af.explain.GradCAM(), af.explain.LRP()):
        assert torch.equal(method(wrapped, X), method(plain, X))


def test_an_output_of_ones_own_is_read_by_a_function():
    nested = Returns(lambda logits: {"boxes": None, "scores": {"all": logits}})
    with pytest.raises(ValueError, match=r"got a dictionary of 'boxes', 'scores'\); Classifier\(model, output="):
        af.apem(nested, X, MAPS)
    model = af.Classifier(nested, output=lambda out: out["scores"]["all"])
    assert torch.equal(af.apem(model, X, MAPS, max_epsilon=64).score, af.apem(network(), X, MAPS, max_epsilon=64).score)
    assert torch.equal(af.explain.Gradient()(model, X), af.explain.Gradient()(network(), X))


@pytest.mark.parametrize("squeeze", [True, False])
def test_one_logit_stands_for_two_classes(squeeze):
    """Literally: the least step at which the logit changes its sign."""
    model = Returns((lambda z: z[:, 0]) if squeeze else (lambda z: z), classes=1)
    with torch.no_grad():
        model.inner[4].bias -= model.inner(X)[:, 0].median()  # both classes occur
    result = af.apem(model, X, MAPS, max_epsilon=512)
    z = model.inner(X)[:, 0]
    assert result.labels.tolist() == (z > 0).long().tolist() and 0 < result.labels.sum() < 4
    for n in range(4):
        image = X[n : n + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.inner(image).sum(), image)
        toward_zero = gradient.sign() * (-1 if z[n] > 0 else 1)
        direction = (MAPS[n] / (3 * MAPS[n].double().sum())).float() * toward_zero
        step = next(k for k in range(1, 513) if (model.inner(X[n] + k * direction) > 0) != (z[n] > 0))
        assert result.epsilon_minus[n] == step
        came = af.explain.Gradient()(model, X)[n]
        torch.testing.assert_close(came, gradient[0] / 2 * (1 if z[n] > 0 else -1))


def test_a_sigmoid_is_refused_and_undone_by_a_function():
    model = Returns(torch.sigmoid, classes=1)
    for call in (lambda: af.apem(model, X, MAPS), lambda: af.explain.Gradient()(model, X)):
        with pytest.raises(ValueError, match=r"one value in \[0, 1\].*Classifier\(model, output=torch.logit\)"):
            call()
    with pytest.warns(UserWarning, match="as a sigmoid gives"):  # of one image it may be chance
        af.explain.Gradient()(model, X[:1])
    undone = af.Classifier(model, output=torch.logit)
    torch.testing.assert_close(undone(X), af.Classifier(Returns(lambda z: z, classes=1))(X))
    assert (af.apem(undone, X, MAPS, max_epsilon=64).epsilon_minus > 0).all()


def test_probabilities_are_warned_of():
    model = Returns(lambda logits: logits.softmax(1))
    with pytest.warns(UserWarning, match="look like probabilities"):
        af.apem(model, X, MAPS, max_epsilon=64)
    with pytest.warns(UserWarning, match="look like probabilities"):
        af.explain.Gradient()(model, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        af.apem(network(), X, MAPS, max_epsilon=64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_low_precision_are_refused_by_the_metric(dtype):
    with pytest.raises(TypeError, match=r"float32 or float64 weights.*model.float\(\) holds the same"):
        af.apem(network().to(dtype), X, MAPS)
    with pytest.raises(TypeError, match="Gradient: images must have the dtype of the model's weights"):
        af.explain.Gradient()(network().to(dtype), X)
    assert af.explain.Gradient()(network().to(dtype), X.to(dtype)).dtype == dtype


def test_images_of_another_dtype_are_refused():
    with pytest.raises(TypeError, match="dtype of the model's weights, float32"):
        af.apem(network(), X.double(), MAPS.double())


def test_exported_and_frozen_modules():
    expected = af.apem(network(), X, MAPS, max_epsilon=64, record="float32").score
    program = torch.export.export(network(), (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    with pytest.raises(TypeError, match=r"ExportedProgram; its .module\(\) is one"):
        af.apem(program, X, MAPS)
    with pytest.raises(ValueError, match="model must take any number of images"):
        af.apem(torch.export.export(network(), (X,)).module(), X, MAPS)
    for model in (program.module(), torch.jit.freeze(torch.jit.script(network()))):
        assert torch.equal(af.apem(model, X, MAPS, max_epsilon=64, record="float32").score, expected)
        torch.testing.assert_close(af.explain.Gradient()(model, X), af.explain.Gradient()(network(), X))


class WithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(images)


def test_a_model_without_a_gradient_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="must be differentiable with respect to images"):
        af.apem(WithoutGradient(), X, MAPS)


def test_numbers_of_numpy_are_numbers():
    plain = af.apem(network(), X, MAPS, max_epsilon=64, batch_size=3)
    came = af.apem(network(), X, MAPS, max_epsilon=np.float32(64), step=np.int64(1), batch_size=np.int64(3))
    assert torch.equal(came.score, plain.score)
    af.filter_relevance(network(), X[:1], MAPS[:1], levels=np.int64(3), max_epsilon=64)
    assert af.explain.key_of(af.explain.SmoothGrad(samples=np.int64(3))) == "smooth-grad:samples=3"
    with pytest.raises(TypeError, match="batch_size must be a whole number"):
        af.apem(network(), X, MAPS, batch_size=2.0)


def test_bounds_for_each_channel_are_those_of_normalised_pixels():
    """The same as clamping pixels before they are normalised: literally."""
    model, mean, std = network(), torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    images = (pixels - mean[:, None, None]) / std[:, None, None]
    lower, upper = -mean / std, (1 - mean) / std
    view = RayView(model, images, MAPS, bounds=(lower, upper.tolist()))
    perturbed = view.perturbed(torch.full((4,), 300.0))
    free = RayView(model, images, MAPS).perturbed(torch.full((4,), 300.0))
    assert torch.equal(perturbed, free.clamp(lower[:, None, None], upper[:, None, None]))
    assert not torch.equal(perturbed, free)
    result = af.apem(model, images, MAPS, max_epsilon=256, bounds=(lower, upper))
    assert not torch.equal(result.epsilon_minus, af.apem(model, images, MAPS, max_epsilon=256).epsilon_minus)
    with pytest.raises(ValueError, match="one for each of the images' 3 channels"):
        af.apem(model, images, MAPS, bounds=((0, 0), None))
    with pytest.raises(ValueError, match="lower < upper"):
        af.apem(model, images, MAPS, bounds=((0, 0, 1), 1))


def test_images_outside_of_their_bounds_are_refused():
    """Clamping alone would change them, and the flip be no answer to a perturbation."""
    model, images = network(), torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    for bounds, shown in (((0, 0.5), r"got 0\.\d+ to 0\.9"), ((0.5, None), "got"), (([0, 0, 0.5], 1.0), "got")):
        with pytest.raises(ValueError, match=f"apem: images must lie within bounds, .*{shown}"):
            af.apem(model, images, MAPS, bounds=bounds, max_epsilon=8)
    rounded = images.clone()
    rounded[0, 0, 0, 0] = 1 + 5e-6  # as normalising in float32 leaves it
    for one in (rounded, images):
        af.apem(model, one, MAPS, bounds=(0.0, 1.0), max_epsilon=8)
        af.apem(model, one, MAPS, bounds=(None, (1.0, 1.0, 1.0)), max_epsilon=8)


def test_values_that_are_of_another_scale_are_warned_of():
    with pytest.warns(UserWarning, match="looks like pixels in 0...255"):
        af.apem(network(), X.abs() * 100, MAPS, max_epsilon=8)
    with pytest.warns(UserWarning, match=r"percentile lies in \[0, 100\], and 0.99"):
        af.relevance_map(X, percentile=0.99)
    with pytest.warns(UserWarning, match="images should be pixels in"):
        af.relevance_map(X, images=X.abs() * 200)
