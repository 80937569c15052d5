"""Spans of the inputs and of the activations, from the gradients of two stacked Linear layers.

``dW1 = M.T @ X`` and ``dW2 = E.T @ phi(X W1.T + b1)``: each input lies in the row space of the first, what leaves the
activation in that of the second. Bias gradients are a further column of ones on the right, so that both spaces are
affine: an input has the coordinate 1 there, and neither zero nor its multiples solve the equations. Where the first
layer's bias did not move, inputs lie in the row space itself: one unknown more, and the last coordinate is a 1 all the
same, which the layer's known bias needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attacker.analytic.low_rank import LowRank
from attacker.analytic.spans.stacked_layers import Activation, value_and_slope

_DAMPING: Final = 10.0
"""At first, so that searches go where their starts are: undamped first steps from anywhere were measured to end at one
point, that of the nearly linear equations."""

_HARDER: Final = 4.0
_EASIER: Final = 0.2
_LEAST_GAIN: Final = 1e-9
_DAMPING_NEAR: Final = 1e-3
_LEAST_GAIN_NEAR: Final = 1e-4
_LEAST_DIAGONAL: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class TwoLayers:
    """Public weights of the two layers, and the factors of their gradients, all float64.

    Attributes:
        first: Factors of the first layer's weight gradient with its bias gradient as the last column, zeros without.
        second: Factors of the second layer's; with its bias gradient as the last column where `second_bias`.
        weight: (units, features + 1), of the first layer, with its bias as the last column.
        behind: (outputs, units), weight of the second layer.
        activation: Between them.
        second_bias: Whether the second layer's bias gradient is known.
        first_bias: Whether the first layer's is.
    """

    first: LowRank
    second: LowRank
    weight: Tensor
    behind: Tensor
    activation: Activation
    second_bias: bool
    first_bias: bool = True

    def with_ones(self, values: Tensor) -> Tensor:
        """What stands beside the second gradient's rows: activations, and a one for the bias."""
        return torch.cat([values, torch.ones_like(values[..., :1])], dim=-1) if self.second_bias else values


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a search from several starts ended.

    Attributes:
        inputs: (starts, features + 1), with the last coordinate 1.
        misfits: (starts,), norm of what the activations have outside of their space.
    """

    inputs: Tensor
    misfits: Tensor


class SpanSearch:
    """Least squares over inputs within one space, so that their activations come to lie in another.

    Args:
        layers: The two layers.
        inside: (k, features + 1), orthonormal rows: where inputs are looked for.
        target: (l, units) or (l, units + 1), orthonormal rows: where activations have to lie.
        units: Units whose equations are used; None for all.
        dtype: Data type of the search. Inputs are taken and returned in float64 all the same.
    """

    def __init__(
        self,
        layers: TwoLayers,
        inside: Tensor,
        target: Tensor,
        units: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self._layers = layers
        if not layers.first_bias:
            inside = torch.cat([inside, torch.eye(inside.shape[1]).to(inside)[-1:]])
        ones = inside[:, -1]
        size = float(ones @ ones)
        # Inputs are origin + z @ free: their last coordinate is 1 whatever z is.
        self._origin = (ones / size) @ inside
        self._free = _complement(ones[:, None]).T @ inside
        weight = layers.weight if units is None else layers.weight[units]
        self._response = (self._free @ weight.T).to(dtype)  # (k - 1, units)
        self._offset = (weight @ self._origin).to(dtype)
        if units is not None:
            chosen = torch.cat([target[:, units], target[:, len(layers.weight) :]], dim=1)
            target = torch.linalg.qr(chosen.T).Q.T
        self._target = target.to(dtype)

    @property
    def unknowns(self) -> int:
        """Numbers that are searched for each input."""
        return len(self._free)

    def coordinates(self, inputs: Tensor) -> Tensor:
        """(n, unknowns): the nearest points of the space to inputs (n, features + 1)."""
        return ((inputs - self._origin) @ self._free.T).to(self._response.dtype)

    def inputs(self, coordinates: Tensor) -> Tensor:
        """(n, features + 1), with the last coordinate 1."""
        points: Tensor = self._origin + coordinates.double() @ self._free
        return points

    def misfit(self, coordinates: Tensor) -> Tensor:
        """(n,), norm of what the activations have outside of their space."""
        sizes: Tensor = torch.linalg.vector_norm(self._outside(coordinates)[0], dim=1)
        return sizes

    def descend(self, start: Tensor, steps: int, *, near: bool = False) -> Found:
        """Levenberg-Marquardt from several starts (n, unknowns) at once.

        Args:
            start: Where to begin.
            steps: At most.
            near: Whether starts are known to lie near solutions: no damping at first, and no patience.
        """
        z, damping = start.clone(), start.new_full((len(start),), _DAMPING_NEAR if near else _DAMPING)
        least_gain = _LEAST_GAIN_NEAR if near else _LEAST_GAIN
        outside, slope = self._outside(z)
        loss = outside.square().sum(dim=1)
        going = torch.full((len(z),), self.unknowns > 0, dtype=torch.bool, device=z.device)
        for _ in range(steps):
            active = going.nonzero().flatten()
            if not len(active):
                break
            normal, pull = self._normal(outside[active], slope[active])
            diagonal = normal.diagonal(dim1=1, dim2=2)
            scale = torch.maximum(diagonal, _LEAST_DIAGONAL * diagonal.amax(dim=1, keepdim=True))
            damped = normal + torch.diag_embed(damping[active, None] * scale)
            tried = z[active] - torch.linalg.solve(damped, pull[..., None]).squeeze(-1)
            new_outside, new_slope = self._outside(tried)
            new_loss = new_outside.square().sum(dim=1)
            better = new_loss < loss[active]
            gain = 1 - new_loss / loss[active]
            kept = active[better]
            z[kept], outside[kept], slope[kept] = tried[better], new_outside[better], new_slope[better]
            loss[kept] = new_loss[better]
            damping[active] *= torch.where(better, _EASIER, _HARDER).to(damping)
            # Where no step is better any more the search has arrived, or stands at a kink.
            stuck = (better & (gain < least_gain)) | (damping[active] > 1e8)
            going[active[stuck]] = False
        return Found(inputs=self.inputs(z), misfits=loss.sqrt())

    def _outside(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What activations have outside of their space, and the activation's slopes (n, units)."""
        value, slope = value_and_slope(self._layers.activation, self._offset + z @ self._response)
        value = self._layers.with_ones(value)
        return value - (value @ self._target.T) @ self._target, slope

    def _normal(self, outside: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Normal equations of the Jacobian ``(I - P) D R``, whose transpose meets only what is outside of P."""
        units = slope.shape[1]
        moved = slope[:, None, :] * self._response  # (n, k - 1, units)
        inside = moved @ self._target[:, :units].T
        normal = moved @ moved.transpose(1, 2) - inside @ inside.transpose(1, 2)
        pull = (moved @ outside[:, :units, None]).squeeze(-1)
        return normal, pull


def _complement(columns: Tensor) -> Tensor:
    """(n, n - c): an orthonormal basis of what is orthogonal to (n, c) independent columns."""
    count = columns.shape[1]
    basis: Tensor = torch.linalg.qr(columns, mode="complete").Q
    return basis[:, count:]
