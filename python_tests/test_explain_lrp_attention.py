"""LRP of transformers and gated networks: the rules of AttnLRP written out, and what reaches the image."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers_small import Attention, vision_transformer

from apem_fast.explain import LRP


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 12, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def half(value: Tensor) -> Tensor:
    """The same value with half of the gradient."""
    return value / 2 + (value / 2).detach()


class LiteralNorm(nn.LayerNorm):
    def forward(self, values: Tensor) -> Tensor:
        mean = values.mean(-1, keepdim=True)
        deviation = (values.var(-1, keepdim=True, unbiased=False) + self.eps).sqrt().detach()
        return (values - mean) / deviation * self.weight + self.bias


class LiteralGelu(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * (F.gelu(values) / values).detach()


class LiteralAttention(Attention):
    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (half(query) @ half(key).mT * query.shape[-1] ** -0.5).softmax(dim=-1)
        return self.proj((half(weights) @ half(value)).transpose(1, 2).flatten(2))


def literal(model: nn.Module) -> nn.Module:
    """The model with layers whose plain gradient times the input is AttnLRP with epsilon = 0."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for kind, other in ((nn.LayerNorm, LiteralNorm), (nn.GELU, LiteralGelu), (Attention, LiteralAttention)):
            if type(module) is kind:
                module.__class__ = other
    return model


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("before", [0, 1])
def test_the_rules_are_those_of_attn_lrp_written_out(before, fused, images):
    model = vision_transformer(before=before, fused=fused).double()
    labels = torch.tensor([0, 3, 4])
    inputs = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(literal(model)(inputs).gather(1, labels[:, None]).sum(), inputs)
    torch.testing.assert_close(LRP(rule="naive")(model, images, labels), images * gradient)
    torch.testing.assert_close(LRP(epsilon=1e-12)(model, images, labels), images * gradient)


class MultiHead(nn.Module):
    """The same attention as torch's own module writes it."""

    def __init__(self, attention: Attention):
        super().__init__()
        width = attention.qkv.in_features
        self.attention = nn.MultiheadAttention(width, attention.heads, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(attention.qkv.weight)
            self.attention.in_proj_bias.copy_(attention.qkv.bias)
            self.attention.out_proj.weight.copy_(attention.proj.weight)
            self.attention.out_proj.bias.copy_(attention.proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


def test_torchs_multi_head_attention_has_the_same_rule(images):
    model = vision_transformer().double()
    other = copy.deepcopy(model)
    for block in other.blocks:
        block.attn = MultiHead(block.attn).double()
    other.eval()
    torch.testing.assert_close(other(images), model(images))
    method, labels = LRP(epsilon=0.01), torch.tensor([1, 2, 3])
    ours, theirs = method.explain(model, images, labels), method.explain(other, images, labels)
    torch.testing.assert_close(ours.attribution, theirs.attribution)
    torch.testing.assert_close(ours.kept_by_biases, theirs.kept_by_biases)


def test_without_constants_and_softmax_all_relevance_reaches_the_image(images):
    """A mixer's norms, products with parameters and GELUs conserve; biases keep what is missing."""
    torch.manual_seed(0)
    model = (
        nn.Sequential(
            nn.Conv2d(3, 6, 4, stride=4),
            nn.Flatten(2),
            nn.LayerNorm(15),
            nn.Linear(15, 15),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(90, 5),
        )
        .double()
        .eval()
    )
    for module in model:
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.bias)
    result = LRP(rule="naive").explain(model, images)
    torch.testing.assert_close(result.conservation + result.bias_share, torch.ones(3, dtype=torch.float64))
    assert result.bias_share.abs().min() > 1e-3


class Gated(nn.Module):
    """Squeeze-and-excitation: a signal times a gate that depends on it."""

    def __init__(self, hard: bool, in_place: bool):
        super().__init__()
        self.signal, self.squeeze, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 5)
        self.gate = nn.Hardsigmoid() if hard else nn.Sigmoid()
        self.in_place, self.constant = in_place, None

    def forward(self, images: Tensor) -> Tensor:
        signal = self.signal(images)
        gate = self.gate(self.squeeze(signal.mean((2, 3), keepdim=True)))
        gate = gate if self.constant is None else self.constant
        signal = signal.mul_(gate) if self.in_place else gate * signal
        return self.head(signal.mean((2, 3)))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_a_gate_is_a_constant(hard, in_place, images):
    torch.manual_seed(0)
    model = Gated(hard, in_place).double().eval()
    labels = torch.tensor([0, 1, 2])
    frozen = copy.deepcopy(model)
    frozen.constant = model.gate(model.squeeze(model.signal(images).mean((2, 3), keepdim=True))).detach()
    inputs = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(frozen(inputs).gather(1, labels[:, None]).sum(), inputs)
    torch.testing.assert_close(LRP(rule="naive")(model, images, labels), images * gradient)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"])
def test_networks_with_squeeze_and_excitation_are_explained(name):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, num_classes=10).eval()
    result = LRP(rule="naive").explain(model, torch.randn(1, 3, 32, 32))
    assert result.attribution.isfinite().all() and result.attribution.any()


@pytest.fixture
def lxt(monkeypatch) -> tuple[ModuleType, ModuleType]:
    """The rules and patches of the authors' own library. Its package itself is not imported: that would need the
    version of another library that it was written for, for the sake of language models."""
    library = pytest.importorskip("lxt")
    package = ModuleType("lxt.efficient")
    package.__path__ = [str(Path(library.__path__[0]) / "efficient")]
    for name in ("lxt.efficient", "lxt.efficient.rules", "lxt.efficient.patches"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "lxt.efficient", package)
    return importlib.import_module("lxt.efficient.rules"), importlib.import_module("lxt.efficient.patches")


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1])
def test_attributions_are_those_of_lxt(before, images, lxt):
    """The library takes its rules into the gradient; the gradient times the image is then AttnLRP with epsilon = 0."""
    rules, patches = lxt
    model = vision_transformer(before=before).double()
    attend = patches.wrap_attention_forward(
        lambda module, query, key, value: F.scaled_dot_product_attention(query, key, value)
    )

    class Norm(nn.LayerNorm):
        forward = patches.layer_norm_forward

    class Gelu(nn.GELU):
        def forward(self, values: Tensor) -> Tensor:
            return rules.identity_rule_implicit(F.gelu, values)

    class Attending(Attention):
        def forward(self, tokens: Tensor) -> Tensor:
            parts = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            return self.proj(attend(self, *parts).transpose(1, 2).flatten(2))

    theirs = copy.deepcopy(model)
    for module in theirs.modules():
        for kind, other in ((nn.LayerNorm, Norm), (nn.GELU, Gelu), (Attention, Attending)):
            if type(module) is kind:
                module.__class__ = other
    inputs, labels = images.clone().requires_grad_(), torch.tensor([0, 3, 4])
    (gradient,) = torch.autograd.grad(theirs(inputs).gather(1, labels[:, None]).sum(), inputs)
    torch.testing.assert_close(LRP(rule="naive")(model, images, labels), images * gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(LRP(epsilon=1e-12)(model, images, labels), images * gradient, rtol=1e-6, atol=1e-9)
