"""A small vision transformer (Dosovitskiy et al., ICLR 2021): class token, learned positions, norms before."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fl_precode.models.input_spec import InputSpec

_HEAD = 64
_SPREAD = 0.02
"""Standard deviation of class token and positions at first."""


class Attention(nn.Module):
    """Self-attention over tokens, in operations that can be differentiated any number of times.

    Args:
        width: Width of a token.
        heads: A divisor of the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(dim=-1)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, width))
        return mixed


class Block(nn.Module):
    """Attention and a perceptron of four times the width, each behind a LayerNorm and beside a shortcut.

    Args:
        width: Width of a token.
        heads: Heads of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) to the same."""
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, blocks, and a Linear classifier on the class token.

    Args:
        inputs: Images that the patches fill without a rest.
        patch: Side of a patch.
        width: Width of a token.
        depth: Number of blocks.

    Raises:
        ValueError: If patches do not fill the images.
    """

    def __init__(self, inputs: InputSpec, *, patch: int, width: int, depth: int) -> None:
        super().__init__()
        if inputs.height % patch or inputs.width % patch:
            raise ValueError(
                f"vit cuts images into patches of {patch}x{patch} and expects them to fill {inputs.height}x"
                f"{inputs.width} pixels without a rest; give a divisor of both, such as "
                f"vit:patch={math.gcd(inputs.height, inputs.width)}, or choose another data set"
            )
        heads = next(count for count in range(max(1, width // _HEAD), 0, -1) if width % count == 0)
        patches = (inputs.height // patch) * (inputs.width // patch)
        self.patches = nn.Conv2d(inputs.channels, width, patch, patch)
        self.class_token = nn.Parameter(_SPREAD * torch.randn(1, 1, width))
        self.positions = nn.Parameter(_SPREAD * torch.randn(1, patches + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, inputs.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        scores: Tensor = self.classifier(self.norm(self.blocks(x))[:, 0])
        return scores


def build_vit(inputs: InputSpec, *, patch: int = 16, width: int = 256, depth: int = 4) -> nn.Module:
    """A vision transformer that trains in seconds: 4 blocks of width 256, as many tokens as at ViT-B/16's size.

    >>> spec = InputSpec(channels=3, height=224, width=224, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    >>> sum(p.numel() for p in build_vit(spec).parameters())
    3409674
    """
    return VisionTransformer(inputs, patch=patch, width=width, depth=depth)
