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


# -- models whose answers are not of the image alone ---------------------------------------------------------------


class Around(nn.Module):
    """A network with something done to its input, or to its answers."""

    def __init__(self, before=None, after=None):
        super().__init__()
        self.inner, self.before, self.after = network(), before, after
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        images = images if self.before is None else self.before(images)
        logits = self.inner(images)
        return logits if self.after is None else self.after(logits)


BATCH_DEPENDENT = {
    "statistics of the batch": Around(nn.BatchNorm2d(3, track_running_stats=False).eval()),
    "the batch's mean": Around(lambda images: images - images.mean(dim=0, keepdim=True) / 2),
    "the other way round": Around(after=lambda logits: logits.flip(0)),
    "the first one's": Around(after=lambda logits: logits[:1].expand(len(logits), -1)),
}
EVERY_MEASURE = {
    "apem": lambda model, images: af.apem(model, images, MAPS, max_epsilon=32).score,
    "filter": lambda model, images: af.filter_relevance(model, images, MAPS, levels=4, max_epsilon=32).relevance,
    "selectivity": lambda model, images: af.selectivity(model, images, MAPS, steps=4).area,
    "continuity": lambda model, images: af.continuity(model, images, af.explain.Gradient()).continuity,
    "flip fraction": lambda model, images: af.measures.flip_fraction(model, images, MAPS).fraction,
}


@pytest.mark.parametrize("measure", EVERY_MEASURE)
@pytest.mark.parametrize("kind", BATCH_DEPENDENT)
def test_a_model_that_answers_by_the_batch_is_refused(kind, measure):
    with pytest.raises(ValueError, match=r"model must answer each image by itself .* another image is in the batch"):
        EVERY_MEASURE[measure](BATCH_DEPENDENT[kind], X)


@pytest.mark.parametrize("kind", BATCH_DEPENDENT)
def test_one_image_at_a_time_such_a_model_has_an_answer(kind):
    """Which is found by going through the images and the grid by hand."""
    model, steps = BATCH_DEPENDENT[kind], 400
    result = af.apem(model, X, MAPS, max_epsilon=steps, batch_size=1, record="float32")
    for n, (image, relevance) in enumerate(zip(X.split(1), MAPS.split(1))):
        leaf = image.clone().requires_grad_()
        logits = model(leaf)
        label = int(logits.argmax())
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([label])), leaf)
        direction = relevance / (3 * relevance.sum()) * gradient.sign()
        with torch.no_grad():
            flips = (step for step in range(1, steps) if int(model(image + step * direction).argmax()) != label)
            assert result.epsilon_minus[n] == next(flips, steps)


def test_a_model_for_one_image_alone_is_run_so():
    def only_one(images: Tensor) -> Tensor:
        if len(images) != 1:
            raise RuntimeError("one at a time")
        return images

    result = af.apem(Around(only_one), X, MAPS, max_epsilon=64, batch_size=1)
    assert torch.equal(result.score, af.apem(network(), X, MAPS, max_epsilon=64).score)


IN_PLACE = {
    "normalises": lambda images: images.sub_(0.1).div_(0.5),
    "inplace=True": nn.ReLU(inplace=True),
    "writes": lambda images: images.index_fill_(2, torch.tensor([0]), 0.0),
}


@pytest.mark.parametrize("method", ["gradient", "smooth-grad:samples=2", "lrp", "grad-cam", "occlusion", "rise"])
@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_model_that_writes_into_its_input_cannot_be_explained(kind, method):
    model, images, explain = Around(IN_PLACE[kind]), X.clone(), af.explain.explainer_from(method)
    for labels in (None, torch.zeros(4, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"model must not write into its input .*; Classifier\(model\)"):
            explain(model, images, labels)
    assert torch.equal(images, X)
    if method == "gradient":
        copying = Around(lambda images: IN_PLACE[kind](images.clone()))
        assert torch.equal(explain(af.Classifier(model), images), explain(copying, X)) and torch.equal(images, X)


@pytest.mark.parametrize("measure", EVERY_MEASURE)
@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_model_that_writes_into_its_input_is_refused_and_served_behind_a_copy(kind, measure):
    images, model = X.clone(), Around(IN_PLACE[kind])
    with pytest.raises(ValueError, match=r"model must not write into its input .*; Classifier\(model\)"):
        EVERY_MEASURE[measure](model, images)
    assert torch.equal(images, X)
    copying = Around(lambda images: IN_PLACE[kind](images.clone()))
    came = EVERY_MEASURE[measure](af.Classifier(model), images)
    assert torch.equal(came, EVERY_MEASURE[measure](copying, X)) and torch.equal(images, X)


def test_a_model_without_a_gradient_anywhere_is_warned_of():
    for after in (lambda logits: 0 * logits, lambda logits: 0 * logits + torch.tensor([1.0, 2.0, 3.0])):
        with pytest.warns(UserWarning, match="apem: the model's gradient is 0 throughout for 4 of 4 images"):
            result = af.apem(Around(after=after), X, MAPS, max_epsilon=8)
        assert not result.flipped_minus.any() and not result.flipped_plus.any()


def test_values_that_are_of_another_scale_are_warned_of():
    with pytest.warns(UserWarning, match="looks like pixels in 0...255"):
        af.apem(network(), X.abs() * 100, MAPS, max_epsilon=8)
    with pytest.warns(UserWarning, match=r"percentile lies in \[0, 100\], and 0.99"):
        af.relevance_map(X, percentile=0.99)
    with pytest.warns(UserWarning, match="images should be pixels in"):
        af.relevance_map(X, images=X.abs() * 200)
