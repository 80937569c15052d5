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
from attacker.reasons import Reason
from fl_precode.observation import Observation


def two_layers(
    observation: Observation, pair: StackedLayers, most: int, *, expected: int | None, exactly: bool = False
) -> TwoLayers | Reason:
    """Weights and gradients of a pair of layers, factored, or why a gradient has no rank.

    Args:
        observation: The update.
        pair: The layers; the first has a bias that moved.
        most: Largest rank that is taken as a number of inputs.
        expected: Number of inputs, where it is known.
        exactly: Whether further directions are left out, as several local steps add some.
    """
    gradient = observed_gradient(observation)
    weights = {**observation.buffers, **observation.parameters}
    one, other = (pair.parameter(pair.first, name) for name in ("weight", "bias"))
    behind, bias = (pair.parameter(pair.second, name) for name in ("weight", "bias"))
    first = above_noise(_beside(gradient[one], gradient[other]), most, name=one, expected=expected)
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
        weight=_beside(weights[one], weights[other]).double(),
        behind=weights[behind].double(),
        activation=pair.activation,
        second_bias=bias in gradient,
    )


def _leading(factors: LowRank, rank: int) -> LowRank:
    return replace(factors, left=factors.left[:, :rank], right=factors.right[:rank])


def _beside(matrix: Tensor, column: Tensor | None) -> Tensor:
    """A weight with its bias as a further column."""
    return matrix if column is None else torch.cat([matrix, column[:, None]], dim=1)
