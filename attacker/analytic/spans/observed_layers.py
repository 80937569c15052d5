"""The two layers with their gradients, as an update shows them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attacker.analytic.low_rank import LowRank
from attacker.analytic.spans.signal_rank import above_noise
from attacker.analytic.spans.stacked_layers import StackedLayers
from attacker.analytic.spans.two_spans import TwoLayers
from attacker.gradients.observed import observed_gradient
from attacker.reasons import Reason, because
from fl_precode.observation import Observation


def two_layers(
    observation: Observation, pair: StackedLayers, most: int, *, expected: int | None, exactly: bool = False
) -> TwoLayers | Reason:
    """Weights and gradients of a pair of layers, factored, or why a gradient has no rank.

    Args:
        observation: The update.
        pair: The layers.
        most: Largest rank that is taken as a number of inputs.
        expected: Number of inputs, where it is known.
        exactly: Whether further directions are left out, as several local steps add some.
    """
    gradient = observed_gradient(observation)
    weights = {**observation.buffers, **observation.parameters}
    one, other = (pair.parameter(pair.first, name) for name in ("weight", "bias"))
    behind, bias = (pair.parameter(pair.second, name) for name in ("weight", "bias"))
    zeros = gradient[one].new_zeros(len(gradient[one]))
    moved, constant = gradient.get(other, zeros), weights.get(other, zeros)
    first = above_noise(_beside(gradient[one], moved), most, name=one, expected=expected)
    if isinstance(first, Reason):
        return first
    if exactly and expected is not None:
        first = _leading(first, min(expected, first.rank))
    second = above_noise(_beside(gradient[behind], gradient.get(bias)), most, name=behind, expected=first.rank)
    if isinstance(second, Reason):
        return second
    return TwoLayers(
        first=first,
        second=_leading(second, first.rank),  # noise may seem to have more directions, inputs have not
        weight=_beside(weights[one], constant).double(),
        behind=weights[behind].double(),
        activation=pair.activation,
        second_bias=bias in gradient,
        first_bias=other in gradient,
    )


def why_no_room(layers: TwoLayers, pair: StackedLayers, size: int | None) -> Reason | None:
    """Why the two spaces do not single inputs out, or None when they do.

    Args:
        layers: Weights and gradients.
        pair: The layers that they are of.
        size: Number of inputs; None where it is unknown.
    """
    first, second, name = layers.first.rank, layers.second.rank, pair.parameter(pair.first, "weight")
    if size is not None and first > size:
        return because("rank-too-high", name=name, rank=first, size=size)
    outputs, units = layers.behind.shape
    images = first if size is None else size
    # Gradients of class scores sum to zero, so that a classifier's has one dimension less than classes.
    if images > second and second >= outputs - 1:
        name = pair.parameter(pair.second, "weight")
        return because("rank-fills-width", name=name, rank=second, images=images, width=outputs)
    if first + second > units:
        return because("rank-fills-width.units", rank=first, units=units)
    return None


def _leading(factors: LowRank, rank: int) -> LowRank:
    return replace(factors, left=factors.left[:, :rank], right=factors.right[:rank])


def _beside(matrix: Tensor, column: Tensor | None) -> Tensor:
    """A weight with its bias as a further column."""
    return matrix if column is None else torch.cat([matrix, column[:, None]], dim=1)
