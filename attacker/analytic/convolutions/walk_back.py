"""From a known map to those before it: one linear system for each, from the gradients of the layers that it enters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attacker.analytic.convolutions.known_maps import FedConvolution, MapsOfModel, output_gradients
from attacker.analytic.factored_equations import gradient_rows
from attacker.analytic.linear_systems import Patches
from attacker.gradients.replay import Replay
from attacker.optim.deadline import time_is_up
from fl_precode.observation import Gradients

MOST_UNKNOWNS: Final = 2_048
"""Of one channel of all images: the work grows with the third power."""

CLEAR: Final = 1e-4
"""Smallest singular value of the equations, relative to the largest, from which rounding does not decide."""

HOLDS: Final = 1e-2
"""What equations may leave over, relative, and a ReLU's output may fall below zero, relative to its largest."""

_ROUNDED: Final = 1e-5
"""What equations leave over where every entry of the maps behind is known to be zero or not."""

_OFTEN: Final = 3.0
"""How much farther above zero than below it rounding may put an entry."""

_FLOOR: Final = 1e-6
"""Of a map's largest value, the least that rounding is taken for."""

_DOUBTFUL: Final = 12
"""Entries nearest to that border that are tried on its other side."""


def earlier_maps(
    replay: Replay, gradient: Gradients, maps: MapsOfModel, number: int, value: Tensor, labels: Tensor
) -> dict[int, Tensor]:
    """The maps that are known when one is, by number: that one and those before it.

    Where everything behind a convolution is known, so is the gradient d_p with respect to its outputs. The gradient of
    its weight, ``sum over p of d_p x_p'``, is then linear in what entered it: one equation for each output and entry of
    the kernel, the same ones for each channel. ReLUs in between let pass what their outputs tell.

    Args:
        replay: The model in float64, weights and buffers.
        gradient: Gradient of the loss, by name.
        maps: Maps of the model.
        number: Number of the known map.
        value: (batch, channels, height, width), what it was for each image of the client.
        labels: (batch,).
    """
    known = {number: cleared(value)}
    while number > 0 and number in maps.relus:
        layers = [layer for layer in maps.fed_by(number - 1) if layer.weight in gradient]
        if not layers or time_is_up(1):
            break
        solution = _solved(replay, gradient, layers, known, labels)
        if solution is not None and solution.missed > _ROUNDED:
            solution, known[number] = _corrected(replay, gradient, layers, known, labels, number, value, solution)
        if solution is None or not solution.holds:
            break
        number, value = number - 1, solution.values
        known[number] = cleared(value)
    return known


def cleared(value: Tensor) -> Tensor:
    """A map without what rounding made of its zeros, which lies about as far above them as below."""
    return torch.where(value > _OFTEN * _rounding(value), value, 0)


def _rounding(value: Tensor) -> Tensor:
    return torch.maximum(-value.min(), _FLOOR * value.max())


def _corrected(
    replay: Replay,
    gradient: Gradients,
    layers: list[FedConvolution],
    known: Mapping[int, Tensor],
    labels: Tensor,
    number: int,
    value: Tensor,
    solution: _Solution,
) -> tuple[_Solution, Tensor]:
    """The solution, and the map behind, with those doubtful entries of it as zeros or not that leave least over.

    One entry on the wrong side of a ReLU puts a whole gradient at an output in the wrong place.
    """
    raw, best = value.flatten(), known[number].flatten()
    distance = (raw / (_OFTEN * _rounding(value))).clamp_min(1e-30).log().abs()
    for place in distance.topk(min(_DOUBTFUL, distance.numel()), largest=False).indices.tolist():
        tried = best.clone()
        tried[place] = 0 if bool(best[place] > 0) else raw[place]
        other = _solved(replay, gradient, layers, {**known, number: tried.reshape(value.shape)}, labels)
        if other is not None and other.missed < solution.missed:
            solution, best = other, tried
        if solution.missed < _ROUNDED:
            break
    return solution, best.reshape(value.shape)


@dataclass(frozen=True, kw_only=True)
class _Solution:
    values: Tensor
    missed: float

    @property
    def holds(self) -> bool:
        """Whether the equations hold, and nothing is negative beyond rounding."""
        return self.missed < HOLDS and -float(self.values.min()) < HOLDS * float(self.values.max())


def _solved(
    replay: Replay, gradient: Gradients, layers: list[FedConvolution], known: Mapping[int, Tensor], labels: Tensor
) -> _Solution | None:
    """What entered convolutions that have their input in common; None where their gradients do not determine it."""
    patches = layers[0].patches
    channels, height, width = patches.shape
    unknowns = len(labels) * height * width
    entries = sum(layer.patches.outputs * layer.patches.kernel[0] * layer.patches.kernel[1] for layer in layers)
    if unknowns > min(MOST_UNKNOWNS, entries) or any(layer.patches.groups > 1 for layer in layers):
        return None
    deltas = output_gradients(replay, known, labels, [layer.name for layer in layers])
    rows = torch.cat([_rows(layer.patches, deltas[layer.name]) for layer in layers])
    right = torch.cat([gradient[layer.weight].to(rows).transpose(1, 0).reshape(channels, -1).T for layer in layers])
    left, sizes, across = torch.linalg.svd(rows, full_matrices=False)
    if not bool(sizes[-1] > CLEAR * sizes[0]):
        return None
    found = across.T @ ((left.T @ right) / sizes[:, None])
    missed = float((rows @ found - right).norm() / right.norm())
    values = found.T.reshape(channels, len(labels), height, width).transpose(0, 1).contiguous()
    return _Solution(values=values, missed=missed)


def _rows(patches: Patches, deltas: Tensor) -> Tensor:
    """(outputs * kernel entries, images * positions), the equations of one channel."""
    return torch.cat([gradient_rows(patches, delta.flatten(1)) for delta in deltas], dim=1)
