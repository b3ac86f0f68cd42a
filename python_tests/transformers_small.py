"""Small vision transformers of random weights, written as the libraries write theirs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention over (N, tokens, width), fused or spelled out."""

    def __init__(self, width: int, heads: int, fused: bool = True):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1)
            mixed = weights @ value
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, fused)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class VisionTransformer(nn.Module):
    """A ViT of patches of 4 pixels, with `before` prefix tokens in front of the grid and `after` tokens behind it; it
    reads the first token, or the mean over all where there is none in front."""

    def __init__(
        self, before: int = 1, after: int = 0, fused: bool = True, width: int = 12, depth: int = 2, classes: int = 5
    ):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.before = nn.Parameter(torch.randn(1, before, width))
        self.after = nn.Parameter(torch.randn(1, after, width))
        self.blocks = nn.Sequential(*(Layer(width, 3, fused) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        grid = self.patches(images).flatten(2).transpose(1, 2)
        extra = [part.expand(len(images), -1, -1) for part in (self.before, self.after)]
        tokens = torch.cat([extra[0], grid, extra[1]], dim=1)
        tokens = self.norm(self.blocks(tokens))
        return self.head(tokens[:, 0] if self.before.shape[1] else tokens.mean(1))


def vision_transformer(**options: object) -> VisionTransformer:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return VisionTransformer(**options).eval()  # type: ignore[arg-type]
