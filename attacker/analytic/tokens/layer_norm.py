"""A LayerNorm by what it does: normalised tokens times a gain plus a shift, whoever computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_EPSILONS: Final = (1e-5, 1e-6, 1e-12, 0.0)
"""What models use, where the layer itself does not say."""

_AGREES: Final = 1e-5


@dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """``gain * (x - mean) / sqrt(var + eps) + shift``.

    Attributes:
        gain: (width,).
        shift: (width,).
        eps: Added to the variance.
    """

    gain: Tensor
    shift: Tensor
    eps: float

    def __call__(self, tokens: Tensor) -> Tensor:
        """(..., width), in the shape of ``tokens``."""
        return self.gain * normalised(tokens, self.eps) + self.shift

    def before_gain(self, returned: Tensor) -> Tensor:
        """The normalised tokens from what the layer returned, with channels of no gain as zeros."""
        dead = self.gain.abs() <= 1e-9 * self.gain.abs().max()
        return torch.where(dead, 0.0, (returned - self.shift) / torch.where(dead, 1.0, self.gain))

    def back(self, hat: Tensor, gradient: Tensor) -> Tensor:
        """The gradient at what the layer received, times the token's standard deviation.

        Args:
            hat: (n, width), normalised tokens.
            gradient: (n, width), of the loss at what the layer returned.
        """
        moved = gradient * self.gain
        return moved - moved.mean(dim=-1, keepdim=True) - hat * (hat * moved).mean(dim=-1, keepdim=True)


def normalised(tokens: Tensor, eps: float) -> Tensor:
    """Tokens with mean 0 and variance 1, but for eps."""
    away = tokens - tokens.mean(dim=-1, keepdim=True)
    hat: Tensor = away / (away.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return hat


def layer_norm_between(received: Tensor, returned: Tensor, eps: float | None) -> LayerNorm | None:
    """The LayerNorm that turns one into the other, (..., width) each; None where none does.

    Args:
        received: At least three tokens.
        returned: The same tokens behind it.
        eps: As the layer says it, or None.
    """
    if received.shape != returned.shape or received.dim() < 2:
        return None
    x, y = received.flatten(0, -2), returned.flatten(0, -2)
    if len(x) < 3:
        return None
    for tried in _EPSILONS if eps is None else (eps, *_EPSILONS):
        hat = normalised(x, tried)
        middle, level = hat.mean(dim=0), y.mean(dim=0)
        gain = ((hat - middle) * (y - level)).sum(dim=0) / (hat - middle).square().sum(dim=0).clamp_min(1e-300)
        norm = LayerNorm(gain=gain, shift=level - gain * middle, eps=tried)
        if bool((norm(x) - y).abs().max() <= _AGREES * y.abs().max()):
            return norm
    return None
