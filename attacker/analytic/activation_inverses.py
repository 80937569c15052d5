"""Elementwise layers read backwards: what went in and the slope there, from what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Run = tuple[Tensor, Tensor, Tensor]

SATURATED = 1e-6
"""Distance from the end of an activation's range, as a share of the range, below which its input is not told.

An update in float32 tells activations to about 1e-7: nearer to the end the inverse is made of rounding.
"""


@dataclass(frozen=True, kw_only=True)
class Inverse:
    """What entered an elementwise layer.

    Attributes:
        inputs: As far as they are known, (v, ...); any value elsewhere.
        slopes: Derivative of the layer there; right where ``inputs`` is unknown too.
        known: Whether the input is told by the output.
        clipped: (v,), outputs so near the end of the range, or beyond it, that they do not tell the input.
    """

    inputs: Tensor
    slopes: Tensor
    known: Tensor
    clipped: Tensor


def invert(layer: nn.Module, outputs: Tensor) -> Inverse | None:
    """Read an elementwise layer backwards, or None when it is not among `INVERTIBLE`.

    Args:
        layer: Its kind and settings count.
        outputs: What came out, (v, ...), as far as it was recovered.

    >>> found = invert(nn.Tanh(), torch.tensor([[0.5, 1.2]], dtype=torch.float64))
    >>> [round(value, 4) for value in found.inputs[0].tolist()], found.known.tolist(), found.clipped.tolist()
    ([0.5493, 6.9078], [[True, False]], [1])
    """
    inverse = INVERTIBLE.get(type(layer))
    if inverse is None:
        return None
    inputs, slopes, known = inverse(layer, outputs)
    lost = ~known
    clipped = (
        lost.flatten(1).sum(dim=1)
        if isinstance(layer, _SATURATING)
        else torch.zeros(len(outputs), dtype=torch.long, device=outputs.device)
    )
    return Inverse(inputs=inputs, slopes=slopes, known=known, clipped=clipped)


def _identity(_layer: nn.Module, y: Tensor) -> Run:
    return y, torch.ones_like(y), torch.ones_like(y, dtype=torch.bool)


def _within(y: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Values moved into the range, and which of them were in it."""
    margin = SATURATED * (high - low)
    inside = y.clamp(low + margin, high - margin)
    return inside, inside == y


def _tanh(_layer: nn.Module, y: Tensor) -> Run:
    inside, known = _within(y, -1.0, 1.0)
    return torch.atanh(inside), (1 - y.square()).clamp_min(0), known


def _sigmoid(_layer: nn.Module, y: Tensor) -> Run:
    inside, known = _within(y, 0.0, 1.0)
    return torch.logit(inside), (y * (1 - y)).clamp_min(0), known


def _relu(_layer: nn.Module, y: Tensor) -> Run:
    """Zeros tell only that the input was not positive; the gradient stops there."""
    positive = y > _floor(y)
    return y, positive.to(y), positive


def _leaky_relu(layer: nn.Module, y: Tensor) -> Run:
    assert isinstance(layer, nn.LeakyReLU)
    if layer.negative_slope <= 0:
        return _relu(layer, y)
    slopes = torch.where(y > 0, 1.0, layer.negative_slope).to(y)
    return y / slopes, slopes, torch.ones_like(y, dtype=torch.bool)


def _softplus(layer: nn.Module, y: Tensor) -> Run:
    """``log(exp(beta y) - 1) / beta``, and y itself where the layer is linear."""
    assert isinstance(layer, nn.Softplus)
    scaled = layer.beta * y
    known = scaled > SATURATED
    safe = scaled.clamp_min(SATURATED)
    z = safe + torch.log(-torch.expm1(-safe))
    z = torch.where(z > layer.threshold, safe, z)
    return z / layer.beta, torch.sigmoid(z), known


def _elu(layer: nn.Module, y: Tensor) -> Run:
    assert isinstance(layer, nn.ELU)
    inside = y.clamp_min(layer.alpha * (SATURATED - 1))
    below = inside.clamp(max=0) / layer.alpha
    z = torch.where(y > 0, y, torch.log1p(below))
    return z, torch.where(y > 0, torch.ones_like(y), layer.alpha * z.clamp(max=0).exp()), inside == y


def _dropout(layer: nn.Module, y: Tensor) -> Run:
    """Active if about as many values are zero as it drops: the others are scaled, those are lost."""
    assert isinstance(layer, nn.Dropout)
    zero = y.abs() <= _floor(y)
    share = zero.flatten(1).to(y).mean(dim=1).reshape(-1, *[1] * (y.dim() - 1))
    active = torch.full_like(share, layer.p > 0) * (share >= layer.p / 2) > 0
    kept = 1 - layer.p
    slopes = torch.where(active, torch.where(zero, 0.0, 1 / max(kept, 1e-9)), 1.0).to(y)
    return torch.where(active, y * kept, y), slopes, ~(active & zero)


def _floor(y: Tensor) -> Tensor:
    """What counts as zero: values are recovered with the rounding of the largest."""
    return SATURATED * y.flatten(1).abs().amax(dim=1).reshape(-1, *[1] * (y.dim() - 1))


_SATURATING = (nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU)

INVERTIBLE: Mapping[type[nn.Module], Callable[[nn.Module, Tensor], Run]] = {
    nn.Identity: _identity,
    nn.Flatten: _identity,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.Softplus: _softplus,
    nn.ELU: _elu,
    nn.Dropout: _dropout,
}
"""Elementwise layers without parameters, by type; subclasses may compute something else and are not taken."""
