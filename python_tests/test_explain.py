"""The explanation methods and baselines: literal oracles, batching independence, and a model left as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from networks import Changed
from torch import nn

from apem_fast import explain
from apem_fast.seeding import generator_for

METHODS = [
    explain.Gradient(),
    explain.SmoothGrad(samples=5, sigma=0.3, batch_size=2),
    explain.GuidedBackprop(),
    explain.GradCAM(),
    explain.GuidedGradCAM(),
    explain.LRP(epsilon=0.1),
    explain.from_captum(IntegratedGradients, n_steps=4),
    explain.IntegratedGradients(steps=3, batch_size=2),
    explain.InputXGradient(),
    explain.Occlusion(window=4, stride=3, batch_size=3),
    explain.RISE(samples=5, cells=3, batch_size=2),
    explain.Random(),
    explain.Uniform(),
    explain.Edge(),
    explain.CenteredGaussian(),
]
MODEL_METHODS = [method for method in METHODS if method.needs_model]


def small_network(channels: int = 3, classes: int = 4) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(24, classes),
        ).eval()


@pytest.fixture
def model() -> nn.Module:
    return small_network()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def literal_gradient(model: nn.Module, image: torch.Tensor, label: int) -> torch.Tensor:
    inputs = image[None].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(inputs)[0, label], inputs)
    return gradient[0]


def test_gradient_is_that_of_the_predicted_logit(model, images):
    attribution = explain.Gradient()(model, images)
    for image, label, came in zip(images, model(images).argmax(1), attribution):
        torch.testing.assert_close(came, literal_gradient(model, image, int(label)))
    assert (attribution < 0).any() and (attribution > 0).any()  # signed


def test_gradient_of_other_labels(model, images):
    labels = torch.tensor([3, 1, 0, 2, 2])
    attribution = explain.Gradient(batch_size=2)(model, images, labels)
    expected = torch.stack([literal_gradient(model, x, int(y)) for x, y in zip(images, labels)])
    torch.testing.assert_close(attribution, expected)


def test_smooth_grad_is_the_mean_over_its_noisy_copies(model, images):
    method = explain.SmoothGrad(samples=7, sigma=0.4, seed=3, batch_size=3)
    labels = model(images).argmax(1)
    for image, label, came in zip(images, labels, method(model, images)):
        noisy = [image + method.noise(image, sample) for sample in range(7)]
        expected = torch.stack([literal_gradient(model, x, int(label)) for x in noisy]).double().mean(0).float()
        torch.testing.assert_close(came, expected)


def test_smooth_grad_noise_has_the_stated_deviation_and_is_drawn_anew(images):
    method = explain.SmoothGrad(sigma=0.2)
    noise = torch.stack([method.noise(image, sample) for image in images for sample in range(100)]).flatten(1)
    assert noise.std().item() == pytest.approx(0.2, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.005)
    correlation = np.corrcoef(noise.numpy())
    assert np.abs(correlation - np.eye(len(noise))).max() < 0.5  # 189 values each: no two draws are alike
    assert not torch.equal(explain.SmoothGrad(seed=1).noise(images[0], 0), method.noise(images[0], 0))


def test_relative_noise_is_in_units_of_the_images_range(images):
    method = explain.SmoothGrad(sigma=0.2, relative=True)
    for image in (images[0], 40 * images[1] + 3):
        noise = torch.stack([method.noise(image, sample) for sample in range(100)])
        assert noise.std().item() == pytest.approx(0.2 * float(image.max() - image.min()), rel=0.03)


def test_smooth_grad_without_noise_is_the_gradient(model, images):
    torch.testing.assert_close(
        explain.SmoothGrad(samples=3, sigma=0.0)(model, images), explain.Gradient()(model, images)
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_other_images_do_not_matter(method, model, images):
    together = method(model, images)
    alone = torch.cat([method(model, image[None]) for image in images])
    backwards = method(model, images.flip(0)).flip(0)
    if method.needs_model and method.images_at_once(images.device) > 1:  # one batch: equal up to rounding
        torch.testing.assert_close(together, alone)
        torch.testing.assert_close(together, backwards)
    else:
        assert torch.equal(together, alone)
        assert torch.equal(together, backwards)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batch_size_does_not_matter(batch_size, model, images):
    smooth = explain.SmoothGrad(samples=6, batch_size=batch_size)(model, images)
    torch.testing.assert_close(smooth, explain.SmoothGrad(samples=6, batch_size=3)(model, images))
    plain = explain.Gradient(batch_size=batch_size)(model, images)
    torch.testing.assert_close(plain, explain.Gradient()(model, images))


@pytest.mark.parametrize("method", [m for m in MODEL_METHODS if m.batch_on(torch.device("cpu")) > 1], ids=repr)
def test_a_model_that_does_not_answer_each_image_by_itself_is_refused(method, images):
    """Its map would be another one beside other images, and nobody would know."""
    with pytest.raises(ValueError, match=rf"^{method.name}: model must (answer each image by itself|compute the same)"):
        method(Changed(small_network(), lambda logits: logits - logits.mean(dim=0)), images)
    with pytest.raises(ValueError, match=rf"^{method.name}: model must (answer|compute) the same .* each time"):
        method(Changed(small_network(), lambda logits: logits + torch.rand_like(logits)), images)


def test_one_image_at_a_time_may_depend_on_its_batch(images):
    def centred(logits):
        return logits - 0.1 * logits.mean(dim=0)

    alone = explain.Gradient(batch_size=1)(Changed(small_network(), centred), images)
    torch.testing.assert_close(alone, 0.9 * explain.Gradient()(small_network(), images))


def test_a_model_is_looked_at_once(model, images):
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for method in (
        explain.Gradient(),
        explain.InFloat64(explain.Gradient()),
        explain.InFloat64(explain.InputXGradient()),
    ):
        method(model, images, torch.zeros(5, dtype=torch.int64))
    assert sizes == [5, 2, 2, 5, 5]  # of copies too


def test_batch_size_bounds_what_enters_the_model(model, images):
    sizes = []
    handle = model.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[0]))
    explain.SmoothGrad(samples=7, batch_size=3)(model, images)
    explain.Gradient(batch_size=2)(model, images)
    handle.remove()
    assert max(sizes) == 3 and sizes[-1] == 1


def state_of(model: nn.Module) -> list:
    return [
        [module.training for module in model.modules()],
        [list(module._forward_hooks) + list(module._backward_hooks) for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        copy.deepcopy(model.state_dict()),
        torch.get_rng_state(),
    ]


def assert_same(before: list, after: list) -> None:
    torch.testing.assert_close(after, before, rtol=0, atol=0)


class Failing(nn.Module):
    """Draws from torch's global generator, then fails at the given call."""

    def __init__(self, model: nn.Module, at: int):
        super().__init__()
        self.model, self.left = model, at

    def forward(self, inputs):
        self.left -= 1
        if self.left <= 0:
            raise ArithmeticError("the model failed")
        return self.model(inputs) + 0 * torch.rand(())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_users_is_changed(method, fails, model, images):
    next(model.parameters()).requires_grad_(False)
    for parameter in list(model.parameters())[1:]:
        parameter.grad = torch.randn_like(parameter)
    model[0].register_forward_hook(lambda *_: None)
    wrapped = Failing(model, at=2 if fails else 10**9).eval()
    kept = images.clone()
    before = state_of(model)
    if fails and method.needs_model:
        with pytest.raises(ArithmeticError):
            method(wrapped, images)
    else:
        with torch.no_grad():
            method(wrapped, images)
    assert_same(before, state_of(model))
    assert torch.equal(images, kept) and not images.requires_grad and images.grad is None


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_works_under_inference_mode_and_on_gradient_requiring_images(method, model, images):
    expected = method(model, images)
    with torch.inference_mode():
        torch.testing.assert_close(method(model, images + 0).clone(), expected)
    images = images.requires_grad_()
    came = method(model, images)
    torch.testing.assert_close(came, expected)
    assert not came.requires_grad and images.grad is None


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_and_memory_format(method, dtype, images):
    model = small_network().to(dtype)
    plain = method(model, images.to(dtype))
    assert plain.shape == images.shape and plain.dtype == dtype
    channels_last = images.to(dtype).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(method(model, channels_last), plain)
    assert method(model, images[:0].to(dtype)).shape == (0, 3, 9, 7)


def test_integrated_gradients_are_those_of_captum(model, images):
    came = explain.IntegratedGradients(steps=6, baseline=0.5)(model, images)
    labels = model(images).argmax(1)
    expected = IntegratedGradients(model).attribute(images.clone(), 0.5, target=labels, n_steps=6)
    torch.testing.assert_close(came, expected.float())
    torch.testing.assert_close(explain.InputXGradient()(model, images), images * explain.Gradient()(model, images))


def test_occlusion_is_the_mean_fall_over_the_squares_that_cover_a_pixel(model, images):
    label = int(model(images[:1]).argmax())
    came = explain.Occlusion(window=4, stride=3, value=0.25)(model, images[:1])[0, 0]
    falls = [[[] for _ in range(7)] for _ in range(9)]
    for y in (0, 3, 5):  # the last one at the edge
        for x in (0, 3):
            covered = images[:1].clone()
            covered[:, :, y : y + 4, x : x + 4] = 0.25
            fall = float(model(images[:1])[0, label] - model(covered)[0, label])
            for i in range(y, y + 4):
                for j in range(x, x + 4):
                    falls[i][j].append(fall)
    torch.testing.assert_close(came, torch.tensor([[np.mean(one) for one in row] for row in falls]).float())


def test_rise_is_the_weighted_mean_of_its_masks(model, images):
    method = explain.RISE(samples=7, cells=3, shown=0.25, seed=2, batch_size=3)
    label, generator = int(model(images[:1]).argmax()), generator_for(images[0], 2)
    masks = [method.mask(9, 7, generator) for _ in range(7)]
    assert all(float(mask.min()) >= 0 and float(mask.max()) <= 1 and mask.shape == (1, 9, 7) for mask in masks)
    total = sum(float(model(images[:1] * mask).softmax(1)[0, label]) * mask[0] for mask in masks)
    torch.testing.assert_close(method(model, images[:1])[0, 1], total / (7 * 0.25))
    many = torch.stack([method.mask(9, 7, generator) for _ in range(400)])
    assert float(many.mean()) == pytest.approx(0.25, abs=0.03)


def test_random_is_uniform_and_seeded(model, images):
    map_ = explain.Random()(model, images)
    assert map_.min() >= 0 and map_.max() < 1 and map_.mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(map_, explain.Random(seed=0)(model, images))
    assert not torch.equal(map_, explain.Random(seed=1)(model, images))
    assert not torch.equal(map_[0], map_[1])


def test_uniform_and_gaussian(model, images):
    assert torch.equal(explain.Uniform()(model, images), torch.ones_like(images))
    bell = explain.CenteredGaussian(width=0.25)(model, images)  # 9 by 7: the centre is pixel (4, 3)
    assert bell[0, 0, 4, 3] == 1
    assert bell[2, 1, 0, 6].item() == pytest.approx(np.exp(-(4**2 + 3**2) / (2 * (0.25 * 7) ** 2)), rel=1e-6)
    assert torch.equal(bell, bell.flip(2)) and torch.equal(bell, bell.flip(3))


def test_edge_is_the_sobel_magnitude_of_each_channel(model, images):
    came = explain.Edge()(model, images).numpy()
    kernel = np.outer([1, 2, 1], [1, 0, -1]) / 4
    for n, c, y, x in [(0, 0, 3, 3), (1, 2, 1, 5), (4, 1, 7, 1)]:
        window = images[n, c, y - 1 : y + 2, x - 1 : x + 2].double().numpy()
        expected = np.sqrt((window * kernel).sum() ** 2 + (window * kernel.T).sum() ** 2) / np.sqrt(2)
        assert came[n, c, y, x] == pytest.approx(expected, rel=1e-5)


def test_progress_counts_images(model, images):
    seen = []
    explain.Gradient(batch_size=2)(model, images, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


class TwoOutputs(nn.Module):
    def forward(self, inputs):
        return inputs, inputs


class Detached(nn.Module):
    def forward(self, inputs):
        return inputs.detach().flatten(1)[:, :4]


X = torch.zeros(2, 3, 8, 8)
BAD = [
    (small_network().train(), X, None, ValueError, "evaluation mode"),
    (nn.Sequential(nn.Dropout(), small_network()).train(), X, None, ValueError, "model.eval()"),
    ("a model", X, None, TypeError, "torch module"),
    (small_network(), X.numpy(), None, TypeError, "images must be a tensor"),
    (small_network(), X.int(), None, TypeError, "floating point"),
    (small_network(), X[0], None, ValueError, r"\(N, C, H, W\)"),
    (small_network(), X * float("nan"), None, ValueError, "finite"),
    (small_network(), X, [0, 1], TypeError, "int64"),
    (small_network(), X, torch.tensor([0]), ValueError, r"shape \(2,\)"),
    (small_network(), X, torch.tensor([0, 4]), ValueError, r"\[0, 4\)"),
    (small_network(), X, torch.tensor([0, -1]), ValueError, r"got -1"),
    (TwoOutputs().eval(), X, None, ValueError, "logits"),
    (nn.Identity().eval(), X, None, ValueError, r"must return logits of shape \(\d, classes\)"),
]


@pytest.mark.parametrize("method", MODEL_METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("model, images, labels, error, words", BAD)
def test_bad_input_gets_one_sentence(method, model, images, labels, error, words):
    with pytest.raises(error, match=words) as caught:
        method(model, images, labels)
    assert str(caught.value).startswith(method.name + ": ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "method",
    [m for m in MODEL_METHODS if m.name not in ("IntegratedGradients", "Occlusion", "RISE")],
    ids=lambda method: method.name,
)
def test_logits_without_a_gradient_are_refused(method):
    with pytest.raises(ValueError, match=f"{method.name}: model must be differentiable"):
        method(Detached().eval(), X)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: explain.SmoothGrad(samples=0), "samples"),
        (lambda: explain.SmoothGrad(sigma=-0.1), "sigma"),
        (lambda: explain.SmoothGrad(batch_size=2.5), "batch_size"),
        (lambda: explain.Gradient(batch_size=0), "batch_size"),
        (lambda: explain.CenteredGaussian(width=0), "width"),
        (lambda: explain.explainer_from("smoothgrad"), "did you mean 'smooth-grad'"),
        (lambda: explain.explainer_from("smooth-grad:sample=3"), "did you mean 'samples'"),
        (lambda: explain.explainer_from("smooth-grad:samples=many"), "samples must be an integer"),
        (lambda: explain.explainer_from("smooth-grad:samples"), "OPTION=VALUE"),
        (lambda: explain.explainer_from("uniform:seed=1"), "it has none"),
    ],
)
def test_bad_options_get_one_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("name", [name for name in explain.EXPLAINERS if name != "maps"])  # which names a folder
def test_specifications_go_there_and_back(name):
    explainer = explain.explainer_from(name)
    assert explain.key_of(explainer) == name
    for field, value in (("seed", 3), ("samples", 7), ("sigma", 0.5), ("width", 0.125), ("relative", True)):
        if field in explainer.options:
            specification = f"{name}:{field}={value}"
            assert explain.explainer_from(specification).options == {**explainer.options, field: value}
            assert explain.key_of(explain.explainer_from(specification)) == specification
