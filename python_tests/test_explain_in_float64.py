"""Maps of a float64 copy of the model: the copy's own gradient, and nothing of the user's changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import apem_fast as af
from apem_fast.explain import explainer_from, key_of


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    return nn.Sequential(*layers).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def test_it_is_the_gradient_of_the_float64_model_rounded_once(model: nn.Module, images: torch.Tensor) -> None:
    before = copy.deepcopy(model.state_dict())
    attribution = af.explain.InFloat64(af.explain.Gradient())(model, images)
    double = copy.deepcopy(model).double()
    leaf = images.double().requires_grad_()
    logits = double(leaf)
    (gradient,) = torch.autograd.grad(logits.gather(1, logits.argmax(1, keepdim=True)).sum(), leaf)
    assert attribution.dtype is torch.float32
    assert torch.equal(attribution, gradient.float())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.dtype is torch.float32 and p.requires_grad and p.grad is None for p in model.parameters())
    assert not torch.equal(attribution, af.explain.Gradient()(model, images))  # the last digits do differ


@pytest.mark.parametrize("name", ["smooth-grad:samples=3:sigma=0.1", "grad-cam", "guided-backprop", "lrp"])
def test_by_name_and_back(name: str, model: nn.Module, images: torch.Tensor) -> None:
    explainer = explainer_from(f"{name}:dtype=float64")
    assert isinstance(explainer, af.explain.InFloat64)
    assert explainer_from(key_of(explainer)) == explainer
    assert explainer.name == explainer_from(name).name
    assert explainer.options["dtype"] == "float64"
    own = explainer_from(name)(copy.deepcopy(model).double(), images.double())
    torch.testing.assert_close(explainer(model, images), own.float(), rtol=0, atol=0)


def test_what_cannot_be_is_refused(model: nn.Module, images: torch.Tensor) -> None:
    class Rounding(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.float())

    with pytest.raises(RuntimeError, match="Gradient: dtype=float64 needs a model that computes in float64"):
        af.explain.InFloat64(af.explain.Gradient())(Rounding(model).eval(), images)
    with pytest.raises(ValueError, match=r"must use the model .got Random"):
        af.explain.InFloat64(af.explain.Random())
    with pytest.raises(TypeError, match=r"must be an Explainer .got str"):
        af.explain.InFloat64("gradient")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"gradient: dtype must be float64 or left out .got 'float16'"):
        explainer_from("gradient:dtype=float16")
    with pytest.raises(TypeError, match="Gradient: images must be a tensor"):
        af.explain.InFloat64(af.explain.Gradient())(model, [1.0])  # type: ignore[arg-type]
