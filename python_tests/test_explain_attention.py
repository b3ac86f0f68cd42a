"""Rollout and attention relevance: the papers' formulas written out, and models that they do not fit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_explain_lrp_attention import MultiHead
from torch import Tensor, nn
from transformers_small import VisionTransformer, vision_transformer

from apem_fast.explain import AttentionRelevance, AttentionRollout, explainer_from

SIZE = (3, 5)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 12, 20, generator=torch.Generator().manual_seed(1))


def weights_of(model: VisionTransformer, image: Tensor, label: int) -> tuple[list[Tensor], list[Tensor]]:
    """Every layer's attention weights (heads, T, T) for one image, and the logit's gradients with respect to them."""
    grid = model.patches(image[None]).flatten(2).transpose(1, 2)
    tokens, weights = torch.cat([model.before, grid, model.after], dim=1), []
    for block in model.blocks:
        attn = block.attn
        query, key, value = attn.qkv(block.norm1(tokens)).unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4)
        weights.append(torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1))
        tokens = tokens + attn.proj((weights[-1] @ value).transpose(1, 2).flatten(2))
        tokens = tokens + block.mlp(block.norm2(tokens))
    tokens = model.norm(tokens)
    logits = model.head(tokens[:, 0] if model.before.shape[1] else tokens.mean(1))
    gradients = torch.autograd.grad(logits[0, label], weights)
    return [one[0].detach() for one in weights], [one[0] for one in gradients]


def literal(method: object, model: VisionTransformer, image: Tensor, label: int) -> Tensor:
    weights, gradients = weights_of(model, image, label)
    mixed = torch.eye(weights[0].shape[-1])
    for attention, gradient in zip(weights, gradients):
        if isinstance(method, AttentionRollout):
            mixed = (0.5 * attention.mean(0) + 0.5 * torch.eye(len(mixed))) @ mixed
        else:
            mixed = mixed + (attention * gradient).clamp(min=0).mean(0) @ mixed
    before = model.before.shape[1]
    row = mixed[0] if before else mixed.mean(0)
    map_ = row[before : before + 15].view(1, 1, *SIZE)
    return F.interpolate(map_, image.shape[1:], mode="bilinear", align_corners=False)[0].expand(image.shape)


@pytest.mark.parametrize("method", [AttentionRollout(), AttentionRelevance()], ids=lambda method: method.name)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("before, after", [(1, 0), (0, 0), (4, 1)])
def test_the_formulas_literally(method, before, after, fused, images):
    model, labels = vision_transformer(before=before, after=after, fused=fused), torch.tensor([0, 3, 4])
    expected = torch.stack([literal(method, model, x, int(y)) for x, y in zip(images, labels)])
    torch.testing.assert_close(method(model, images, labels), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("method", [AttentionRollout(), AttentionRelevance()], ids=lambda method: method.name)
def test_torchs_multi_head_attention_is_the_same(method, images):
    model, other = vision_transformer(), vision_transformer()
    for block in other.blocks:
        block.attn = MultiHead(block.attn)
    torch.testing.assert_close(method(other.eval(), images), method(model, images))


class Windows(nn.Module):
    """Attention among the tokens of a row alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention = nn.Conv2d(3, 6, 4, stride=4), vision_transformer(width=6).blocks[0].attn
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.patches(images).permute(0, 2, 3, 1).flatten(0, 1)
        return self.head(self.attention(rows).unflatten(0, (len(images), -1)).mean((1, 2)))


@pytest.mark.parametrize("name", ["attention-rollout", "attention-relevance"])
def test_models_that_they_do_not_fit_are_refused(name, images):
    method = explainer_from(name)
    with pytest.raises(ValueError, match=f"{method.name}: model must attend from all of an image's tokens"):
        method(Windows().eval(), images)
    with pytest.raises(ValueError, match=f"{method.name}: model must have attention"):
        method(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), images)
