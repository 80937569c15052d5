"""Tokens as they entered the block, from what entered its perceptron: no attention is inverted.

What each token sent back at the perceptron's output, e, follows from the second layer's gradient; at its input, m, from
e. The norm before the perceptron turns m into k / s, s the token's unknown standard deviation, so that the token's
gradient behind the attention is ``r = e + k / s``. The gradient of the attention's projection is ``sum r a'``: r lies
in its column space, which leaves one number s for each token, and the a of all tokens follow by one solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.analytic.spans.signal_rank import above_noise
from attacker.analytic.spans.stacked_layers import value_and_slope
from attacker.analytic.spans.two_spans import TwoLayers
from attacker.analytic.tokens.first_block import FirstBlock
from attacker.optim.least_squares import least_squares
from attacker.reasons import Reason


@dataclass(frozen=True, kw_only=True)
class LinkedTokens:
    """What is known of each token that was found.

    Attributes:
        hat: (n, width), normalised as by the norm before the perceptron.
        sizes: (n,), standard deviation that the norm divided by.
        mixed: (n, width), what the attention's heads gave, side by side.
        attended: (n, width), what the attention had added.
        tokens: (n, width), as they entered the block, with mean 0.
        outer: (n, width), gradient at the block's output.
        inner: (n, units), gradient at the perceptron's first layer.
        residuals: Relative residuals of the solves, by name: of the first layer's gradient, of the projection's, and
            the share of r outside of the projection's column space.
    """

    hat: Tensor
    sizes: Tensor
    mixed: Tensor
    attended: Tensor
    tokens: Tensor
    outer: Tensor
    inner: Tensor
    residuals: dict[str, float]


def link_tokens(block: FirstBlock, layers: TwoLayers, hidden: Tensor, out_gradient: Tensor) -> LinkedTokens | Reason:
    """Follow tokens back to the block's entry.

    Args:
        block: The block.
        layers: Weights and factored gradients of its perceptron.
        hidden: (n, width), what entered the perceptron.
        out_gradient: (width, width), gradient of the attention's projection.

    Returns:
        The tokens, or why the projection's gradient has no column space.
    """
    outer, inner = _sent_back(layers, hidden)
    first = layers.first.left @ layers.first.right[:, :-1]
    hat = block.norm.before_gain(hidden)
    # The gradients at the sums: behind the perceptron's scale, and before the attention's.
    e = outer / block.mlp_scale
    k = block.norm.back(hat, inner @ layers.weight[:, :-1])
    scaled = out_gradient.double() / block.attention.scale[:, None]
    columns = above_noise(scaled, len(hidden), name=block.attention.out_weight, expected=len(hidden))
    if isinstance(columns, Reason):
        return columns
    basis = torch.linalg.svd(scaled, full_matrices=False).U[:, : len(hidden)]
    inverse = -(_off(e, basis) * _off(k, basis)).sum(dim=1) / _off(k, basis).square().sum(dim=1).clamp_min(1e-300)
    usual = inverse[inverse > 0].median() if bool((inverse > 0).any()) else inverse.new_ones(())
    inverse = torch.where(inverse > 1e-3 * usual, inverse, usual)
    r = e + k * inverse[:, None]
    mixed = least_squares(r.T, scaled)
    attended = block.attention.added(mixed)
    sizes = 1 / inverse
    tokens = sizes[:, None] * hat - attended
    residuals = {
        "first layer": _share(first - inner.T @ hidden, first),
        "sent back": float((_off(r, basis).norm(dim=1) / r.norm(dim=1).clamp_min(1e-300)).median()),
        "projection": _share(scaled - r.T @ mixed, scaled),
    }
    return LinkedTokens(
        hat=hat,
        sizes=sizes,
        mixed=mixed,
        attended=attended,
        tokens=centred(tokens),
        outer=outer,
        inner=inner,
        residuals=residuals,
    )


def centred(tokens: Tensor) -> Tensor:
    """Tokens without their mean, which no norm lets through."""
    return tokens - tokens.mean(dim=-1, keepdim=True)


def _sent_back(layers: TwoLayers, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(n, width) at the perceptron's output and (n, units) at its first layer."""
    value, slope = value_and_slope(layers.activation, hidden @ layers.weight[:, :-1].T + layers.weight[:, -1])
    activations = layers.with_ones(value)
    # activations.T @ outer = right.T @ left.T: within the row space, which the activations span.
    outer = least_squares(activations.T, layers.second.right.T) @ layers.second.left.T
    return outer, slope * (outer @ layers.behind)


def _off(rows: Tensor, basis: Tensor) -> Tensor:
    return rows - (rows @ basis) @ basis.T


def _share(rest: Tensor, whole: Tensor) -> float:
    return float(rest.norm() / whole.norm().clamp_min(1e-300))
