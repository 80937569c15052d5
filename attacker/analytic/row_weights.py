"""The equations of one layer with weighted rows, on flat vectors as a solver takes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.analytic.linear_systems import LayerSystem
from attacker.optim.lsmr import solve

_ALL_BACK = 1e-9
"""Share of a random vector that may be missing when its equations determine it: rounding, and no direction."""


@dataclass(frozen=True)
class WeightedEquations:
    """A layer's system with weighted rows, on flat vectors.

    Attributes:
        system: The equations.
        weights: (v, rows), of the weight constraints.
        scale: (v, 1), of the gradient constraints.
        shape: Shape of the weight constraints' right side, (v, ...).
    """

    system: LayerSystem
    weights: Tensor
    scale: Tensor
    shape: torch.Size

    def apply(self, x: Tensor) -> Tensor:
        """(v, unknowns) to (v, rows)."""
        z, gradient = self.system.apply(x.reshape(-1, *self.system.patches.shape))
        return torch.cat([z.flatten(1) * self.weights, gradient * self.scale], dim=1)

    def transposed(self, rows: Tensor) -> Tensor:
        """(v, rows) to (v, unknowns)."""
        told = self.weights.shape[1]
        z, gradient = rows[:, :told], rows[:, told:]
        return self.system.transposed((z * self.weights).reshape(self.shape), gradient * self.scale).flatten(1)


def measured_rank(equations: WeightedEquations, like: Tensor) -> Tensor:
    """(v,), by how much of a random vector its own equations give back; a guess unless that is all of it."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    solution = solve(equations.apply, equations.transposed, equations.apply(vector))
    lost = (vector - solution.x).square().sum(dim=1) / vector.square().sum(dim=1)
    unknowns = like.shape[1]
    return torch.where(lost < _ALL_BACK, unknowns, ((1 - lost) * unknowns).floor().long().clamp(max=unknowns - 1))
