"""Grad-CAM of models with tokens: literal oracles, layouts that are recognised, and refusals in place of wrong maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers_small import Attention, vision_transformer

from apem_fast import explain


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 12, 20, generator=torch.Generator().manual_seed(1))  # a grid of 3 x 5


def literal_map(tokens: Tensor, logit: Tensor, begin: int, size: tuple[int, int], like: Tensor) -> Tensor:
    """Grad-CAM of tokens (N, T, D) whose grid begins at `begin`, written out."""
    (gradient,) = torch.autograd.grad(logit.sum(), tokens)
    end = begin + size[0] * size[1]
    weights = gradient[:, begin:end].mean(dim=1)
    maps = torch.einsum("nd,ntd->nt", weights, tokens.detach()[:, begin:end]).relu().view(-1, 1, *size)
    return F.interpolate(maps, like.shape[2:], mode="bilinear", align_corners=False).expand(like.shape)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("before, after", [(1, 0), (5, 0), (0, 0), (1, 2)])
def test_grad_cam_reads_the_tokens_that_enter_the_last_attention(before, after, fused, images):
    model = vision_transformer(before=before, after=after, fused=fused)
    labels = torch.tensor([0, 3, 4])
    seen = []
    handle = model.blocks[1].norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logit = model(images).gather(1, labels[:, None])
    handle.remove()
    expected = literal_map(seen[0], logit, before, (3, 5), images)
    torch.testing.assert_close(explain.GradCAM()(model, images, labels), expected)
    torch.testing.assert_close(explain.GradCAM(layer="blocks.1.norm1")(model, images, labels), expected)

    def by_hand(tokens: Tensor) -> Tensor:
        return tokens[:, before : before + 15].mT.unflatten(2, (3, 5))

    named = explain.GradCAM(layer="blocks.1.norm1", reshape=by_hand)
    torch.testing.assert_close(named(model, images, labels), expected)


class Mixer(nn.Module):
    """Mixes tokens by linear layers: no attention, and no convolution but the patch embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 6, 4, stride=4), nn.Linear(15, 15), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2)
        return self.head((tokens + self.mix(tokens)).mean(2))


class Pruned(nn.Module):
    """Drops a token before its last attention: what is left lies on no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention, self.head = nn.Conv2d(3, 6, 4, stride=4), Attention(6, 2), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)[:, 1:]
        return self.head(self.attention(tokens).mean(1))


@pytest.mark.parametrize("model, where", [(Mixer().eval(), "mix"), (Pruned().eval(), "attention")])
def test_the_patch_embedding_is_never_taken(model, where, images):
    with pytest.raises(ValueError, match=f"Grad-CAM: layer must be named, and with reshape=.*got .*{where}"):
        explain.GradCAM()(model, images)


class ChannelsLast(nn.Module):
    """Maps (N, h, w, channels) with windows of attention inside, halved once, as a Swin transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm, self.attention = nn.Conv2d(3, 6, 2, stride=2), nn.LayerNorm(24), Attention(24, 2)
        self.block, self.head = self._Block(self.attention, self.norm), nn.Linear(24, 5)

    class _Block(nn.Module):
        def __init__(self, attention: nn.Module, norm: nn.Module):
            super().__init__()
            self.attention, self.norm = attention, norm

        def forward(self, maps: Tensor) -> Tensor:
            images, height, width, channels = maps.shape
            rows = self.norm(maps).reshape(images * height, width, channels)
            return maps + self.attention(rows).view(maps.shape)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.pixel_unshuffle(self.patches(images), 2).permute(0, 2, 3, 1)
        return self.head(self.block(maps * 1).mean((1, 2)))


def test_maps_with_the_channels_last_are_recognised(images):
    torch.manual_seed(0)
    model = ChannelsLast().eval()
    labels = torch.tensor([1, 2, 3])
    tokens = F.pixel_unshuffle(model.patches(images), 2).flatten(2).mT.detach().requires_grad_()
    maps = tokens.unflatten(1, (3, 5))
    logit = model.head(model.block(maps).mean((1, 2))).gather(1, labels[:, None])
    expected = literal_map(tokens, logit, 0, (3, 5), images)
    torch.testing.assert_close(explain.GradCAM()(model, images, labels), expected)


def test_a_layer_after_which_only_the_class_token_is_read_is_refused(images):
    model = vision_transformer()
    with pytest.raises(ValueError, match="Grad-CAM: layer must be one after which the picture's tokens still reach"):
        explain.GradCAM(layer="blocks.1")(model, images)
    assert explain.GradCAM(layer="blocks.0")(model, images).amax() > 0


def test_attention_weights_are_no_maps():
    torch.manual_seed(0)
    model = vision_transformer(before=0, fused=False)
    model.blocks[1].attn.weights = nn.Identity().eval()

    def forward(tokens: Tensor) -> Tensor:
        attn = model.blocks[1].attn
        query, key, value = attn.qkv(tokens).unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = attn.weights((query @ key.mT).softmax(dim=-1))
        return attn.proj((weights @ value).transpose(1, 2).flatten(2))

    model.blocks[1].attn.forward = forward
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"must give feature maps .* \(got \(2, 3, 16, 16\)\)"):
        explain.GradCAM(layer="blocks.1.attn.weights")(model, images)


@pytest.mark.parametrize(
    "reshape, words",
    [
        (lambda tokens: tokens, r"reshape must make maps"),
        (lambda tokens: tokens[:, 1:].mT.unflatten(2, (3, 5)) + 1, "no more than move values"),
    ],
)
def test_a_reshape_that_does_more_than_move_values_is_refused(reshape, words, images):
    with pytest.raises(ValueError, match=words):
        explain.GradCAM(layer="blocks.1.norm1", reshape=reshape)(vision_transformer(), images)
    with pytest.raises(ValueError, match="reshape goes with a layer"):
        explain.GradCAM(reshape=reshape)


def test_no_hook_is_left_behind(images):
    model = vision_transformer()
    explain.GradCAM()(model, images)
    with pytest.raises(RuntimeError):
        explain.GradCAM()(nn.Sequential(model, nn.Linear(7, 7)).eval(), images, torch.zeros(3, dtype=torch.int64))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


VISION_TRANSFORMERS = {
    "vit_b_32": (768, 7, 7),
    "swin_t": (768, 7, 7),
    "swin_v2_t": (768, 7, 7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION_TRANSFORMERS)
def test_torchvisions_transformers_are_read_in_their_last_block(name):
    models = pytest.importorskip("torchvision.models")
    from apem_fast.explain.feature_maps import Watch
    from apem_fast.explain.intercepted import running_under

    model, images = models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224, requires_grad=True)
    watch = Watch(images)
    with watch.over(model), running_under(watch):
        model(images)
    (found,) = watch.found
    assert found.of_tokens and tuple(found.read(found.values).shape[1:]) == VISION_TRANSFORMERS[name]
