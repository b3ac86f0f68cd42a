"""Guided Backpropagation, Grad-CAM and Guided Grad-CAM: against tensor hooks, against Captum, and what is refused."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from captum.attr import GuidedBackprop as CaptumGuidedBackprop
from captum.attr import GuidedGradCam, LayerGradCam
from torch import Tensor, nn

from apem_fast import explain

RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "method": Tensor.relu,
    "method in place": Tensor.relu_,
    "clamp": lambda x: x.clamp(min=0),
    "clamp of torch": lambda x: torch.clamp(x, 0),
    "clamp_min in place": lambda x: x.clamp_min_(0),
}
CEILED = {
    "module": nn.ReLU6(),
    "module in place": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "clamp": lambda x: x.clamp(0, 6),
    "clip": lambda x: torch.clip(x, min=0, max=6),
}


class Network(nn.Module):
    """Two convolutions and a skip connection, with any function as its activation."""

    def __init__(self, activation=F.relu) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.pool, self.last = nn.AdaptiveAvgPool2d(2), nn.Linear(24, 5)
        self.activation = activation
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        features = F.max_pool2d(self.activation(4 * self.first(images)), 2)
        features = self.activation(self.second(features) + features)
        return self.last(self.pool(features).flatten(1))


@pytest.fixture
def images() -> Tensor:
    return 3 * torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def hooked(relu):
    """A ReLU that zeroes the negative entries of the gradient of its output: the definition, on one tensor."""

    def guided(inputs: Tensor) -> Tensor:
        output = relu(inputs + 0)
        output.register_hook(lambda gradient: gradient.clamp(min=0))
        return output

    return guided


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    images = images.clone().requires_grad_()
    return torch.autograd.grad(model(images).gather(1, labels[:, None]).sum(), images)[0]


def labels_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


@pytest.mark.parametrize("spelling", RELUS)
def test_every_spelling_of_relu_is_guided(spelling, images):
    model = Network(RELUS[spelling])
    labels = labels_of(model, images)
    came = explain.GuidedBackprop()(model, images)
    torch.testing.assert_close(came, gradient_of(Network(hooked(F.relu)), images, labels))
    assert not torch.allclose(came, gradient_of(model, images, labels), rtol=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captum = CaptumGuidedBackprop(Network(nn.ReLU())).attribute(images.clone(), target=labels)
    assert torch.equal(came, captum)


@pytest.mark.parametrize("spelling", CEILED)
def test_relus_with_a_ceiling_are_guided(spelling, images):
    model = Network(CEILED[spelling])
    assert (4 * model.first(images) > 6).any()
    labels = labels_of(model, images)
    came = explain.GuidedBackprop()(model, images)
    torch.testing.assert_close(came, gradient_of(Network(hooked(F.relu6)), images, labels))
    assert not torch.allclose(came, gradient_of(model, images, labels), rtol=0.1)


def test_an_in_place_relu_whose_result_is_dropped_still_counts(images):
    def rectify(inputs: Tensor) -> Tensor:
        F.relu_(inputs)
        return inputs

    labels = labels_of(Network(), images)
    expected = gradient_of(Network(hooked(F.relu)), images, labels)
    torch.testing.assert_close(explain.GuidedBackprop()(Network(rectify), images), expected)


def test_other_activations_keep_their_gradient(images):
    def both(guide):
        return lambda inputs: F.leaky_relu(guide(F.gelu(inputs)) - 0.1, 0.3)

    labels = labels_of(Network(both(F.relu)), images)
    expected = gradient_of(Network(both(hooked(F.relu))), images, labels)
    torch.testing.assert_close(explain.GuidedBackprop()(Network(both(F.relu)), images), expected)


def test_compiled_models_are_explained_too(images):
    model = Network()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(images)
    for method in (explain.GuidedBackprop(), explain.GradCAM(), explain.LRP()):
        torch.testing.assert_close(method(compiled, images), method(model, images))


def in_a_thread(inputs: Tensor) -> Tensor:
    outputs = []
    thread = threading.Thread(target=lambda: outputs.append(F.relu(inputs)))
    thread.start()
    thread.join()
    return outputs[0]


@pytest.mark.parametrize(
    "model, error, words",
    [
        (Network(torch.tanh), ValueError, "must have ReLUs"),
        (Network(F.leaky_relu), ValueError, "must have ReLUs"),
        (Network(lambda x: F.hardtanh(x, -1, 1)), ValueError, "must have ReLUs"),
        (torch.jit.trace(Network(), torch.zeros(2, 3, 12, 10)), TypeError, "scripted or traced"),
        (nn.Sequential(torch.jit.script(nn.ReLU()), Network()).eval(), TypeError, "got '0'"),
        (Network(in_a_thread), ValueError, "out of reach"),
    ],
)
def test_never_the_plain_gradient_under_another_name(model, error, words, images):
    for method in (explain.GuidedBackprop(), explain.GuidedGradCAM()):
        with pytest.raises(error, match=words) as caught:
            method(model, images)
        assert str(caught.value).startswith(method.name + ": ") and "\n" not in str(caught.value)


def test_efficientnet_lite0_is_truly_guided():
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = efficientnet.EfficientNet.from_name("efficientnet-lite0").eval()
        images = torch.randn(1, 3, 64, 64)

    class Hooked(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return hooked(F.relu6)(inputs)

    oracle = copy.deepcopy(model)
    for module in oracle.modules():
        if isinstance(getattr(module, "_swish", None), nn.ReLU6):
            module._swish = Hooked()
    labels = labels_of(model, images)
    came, plain = explain.GuidedBackprop()(model, images), gradient_of(model, images, labels)
    torch.testing.assert_close(came, gradient_of(oracle, images, labels))
    assert (came - plain).norm() > 0.5 * plain.norm()


def literal_grad_cam(model: nn.Module, layer: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    map_ = LayerGradCam(model, layer).attribute(images, target=labels, relu_attributions=True)
    return F.interpolate(map_, images.shape[2:], mode="bilinear", align_corners=False).expand(images.shape)


def vgg_like(inplace: bool) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 5),
        ).eval()


@pytest.mark.parametrize("inplace", [False, True])
def test_grad_cam_finds_the_last_convolutional_unit(inplace, images):
    model = vgg_like(inplace)
    labels = labels_of(model, images)
    came = explain.GradCAM()(model, images)
    reference = vgg_like(inplace=False)
    torch.testing.assert_close(came, literal_grad_cam(reference, reference[5], images, labels))
    assert (came >= 0).all() and came.amax() > 0 and torch.equal(came[:, 0], came[:, 2])


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(4), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1)], ids=repr)
def test_grad_cam_never_reads_a_pooled_map_even_of_the_same_size(pool, images):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Conv2d(6, 8, 1),
            nn.ReLU(),
            pool,
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(128, 5),
        ).eval()
    labels = labels_of(model, images)
    torch.testing.assert_close(explain.GradCAM()(model, images), literal_grad_cam(model, model[4], images, labels))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layer", ["0", "3", "4", "2"])
def test_grad_cam_of_a_named_layer_is_that_of_captum(inplace, layer, images):
    model = vgg_like(inplace)
    labels = torch.tensor([0, 1, 2, 3])
    came = explain.GradCAM(layer=layer)(model, images, labels)
    reference = vgg_like(inplace=False)
    torch.testing.assert_close(came, literal_grad_cam(reference, reference[int(layer)], images, labels))


class WithoutRoom(nn.Module):
    """Squeezes to one pixel before its last convolutions, as squeeze-and-excitation does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = vgg_like(inplace=True)[:6]
        self.squeezed = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images)
        features = features * torch.sigmoid(self.squeezed(features.mean((2, 3), keepdim=True)))
        return self.last(F.adaptive_avg_pool2d(features, 1)).flatten(1)


def test_grad_cam_passes_over_convolutions_of_one_pixel(images):
    torch.manual_seed(0)
    model = WithoutRoom()
    labels = labels_of(model, images)
    inputs = images.clone()
    features = model.body(inputs)
    features = (features * torch.sigmoid(model.squeezed(features.mean((2, 3), keepdim=True)))).detach().requires_grad_()
    logits = model.last(F.adaptive_avg_pool2d(features, 1)).flatten(1)
    (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), features)
    map_ = (gradient.mean((2, 3), keepdim=True) * features).sum(1, keepdim=True).relu().detach()
    expected = F.interpolate(map_, images.shape[2:], mode="bilinear", align_corners=False).expand(images.shape)
    torch.testing.assert_close(explain.GradCAM()(model, images), expected)


def test_guided_grad_cam_is_the_product_and_that_of_captum(images):
    model = vgg_like(inplace=False)
    labels = labels_of(model, images)
    product = explain.GradCAM()(model, images) * explain.GuidedBackprop()(model, images)
    torch.testing.assert_close(explain.GuidedGradCAM()(model, images), product)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captum = GuidedGradCam(model, model[3]).attribute(images.clone(), labels, interpolate_mode="bilinear")
    torch.testing.assert_close(explain.GuidedGradCAM(layer="3")(model, images), captum)


def test_resnet_is_read_at_the_output_of_its_last_stage():
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model, images = models.resnet18().eval(), torch.randn(2, 3, 64, 64)
    labels = labels_of(model, images)
    torch.testing.assert_close(explain.GradCAM()(model, images), literal_grad_cam(model, model.layer4, images, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captum = CaptumGuidedBackprop(model).attribute(images.clone(), target=labels)
    assert torch.equal(explain.GuidedBackprop()(model, images), captum)


@pytest.mark.parametrize(
    "model, layer, words",
    [
        (vgg_like(True), "features.3", "path of a module"),
        (vgg_like(True), "8", r"feature maps of shape \(N, channels, h, w\) \(got \(4, 5\)\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(360, 5)).eval(), None, "convolution"),
        (Network(nn.ReLU()), "activatoin", "did you mean 'activation'"),
    ],
)
def test_layers_that_will_not_do_are_refused(model, layer, words, images):
    kept = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=words) as caught:
        explain.GradCAM(layer=layer)(model, images)
    assert str(caught.value).startswith("Grad-CAM: ")
    assert kept == {name: list(module._forward_hooks) for name, module in model.named_modules()}


def test_the_hook_of_a_named_layer_goes_also_when_the_model_fails(images):
    model = vgg_like(True)
    labels = torch.zeros(4, dtype=torch.int64)
    failing = nn.Sequential(model, nn.Linear(7, 7)).eval()
    with pytest.raises(RuntimeError, match="mat1"):
        explain.GradCAM(layer="0.3")(failing, images, labels)
    assert not any(module._forward_hooks for module in failing.modules())
