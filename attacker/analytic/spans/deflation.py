"""Takes found inputs out of both gradients exactly: what is left is the gradient of the other images alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.analytic.low_rank import LowRank
from attacker.analytic.spans.stacked_layers import value_and_slope
from attacker.analytic.spans.two_spans import TwoLayers


@dataclass(frozen=True, kw_only=True)
class BackwardPass:
    """What one found input sent back through the second layer.

    Attributes:
        outer: (outputs,), the loss's gradient at the second layer's output for this input.
        inner: (units,), the same at the first layer's output.
        outside: Share of ``inner`` outside of the first gradient's column space, 0 for a true input.
        gap: How much farther outside the next best direction is: 1 says that nothing is decided, 0 that all is.
        scales: Quotient of the sizes of ``inner`` by the first gradient and by the second, 1 for a true input.
    """

    outer: Tensor
    inner: Tensor
    outside: float
    gap: float
    scales: float

    @property
    def misfit(self) -> float:
        """How far the two gradients disagree about this input, relative: 0 for a true input."""
        return max(self.outside, abs(1.0 - self.scales))


class Deflation:
    """Backward passes of found inputs, and what remains of both row spaces without them.

    For an input x the gradient at the first layer's output is ``m = phi'(W1 x + b1) * (W2.T e)``, with e in the column
    space of the second layer's gradient and m in that of the first: a linear system with one solution, up to its size.
    A matrix ``A = sum m_i x_i.T`` of rank n minus ``s m x.T`` has rank n - 1 for ``1 / s = x.T pinv(A) m`` alone
    (Wedderburn), which gives the size.

    Args:
        layers: The two layers.
    """

    def __init__(self, layers: TwoLayers) -> None:
        self._layers = layers
        self._first_basis, self._first_values = _split(layers.first)
        self._second_basis, self._second_values = _split(layers.second)
        self._through = layers.behind.T @ self._second_basis  # (units, l)

    def backward(self, inputs: Tensor) -> BackwardPass:
        """The backward pass of one input (features + 1,)."""
        layers = self._layers
        value, slope = value_and_slope(layers.activation, layers.weight @ inputs)
        moved = slope[:, None] * self._through
        outside = moved - self._first_basis @ (self._first_basis.T @ moved)
        _, values, right = torch.linalg.svd(torch.linalg.qr(outside, mode="r").R)
        direction = right[-1]
        inner = moved @ direction
        within = self._first_basis.T @ inner
        second = float((layers.second.right @ layers.with_ones(value)) @ (direction / self._second_values))
        first = float((layers.first.right @ inputs) @ (within / self._first_values))
        size = float(torch.linalg.vector_norm(inner))
        return BackwardPass(
            outer=self._second_basis @ direction / second,
            inner=inner / second,
            outside=float(values[-1]) / max(size, 1e-300),
            gap=float(values[-1] / values[-2].clamp_min(1e-300)) if len(values) > 1 else 0.0,
            scales=second / first if first else 0.0,
        )

    def remaining(self, found: list[BackwardPass]) -> tuple[Tensor, Tensor]:
        """Orthonormal rows of both row spaces without the found inputs."""
        if not found:
            return self._layers.first.right, self._layers.second.right
        inner = torch.stack([one.inner for one in found], dim=1)
        outer = torch.stack([one.outer for one in found], dim=1)
        first = _without(self._first_basis.T @ inner, self._first_values)
        second = _without(self._second_basis.T @ outer, self._second_values)
        return first @ self._layers.first.right, second @ self._layers.second.right


def _split(factors: LowRank) -> tuple[Tensor, Tensor]:
    """Orthonormal columns, and singular values."""
    values = torch.linalg.vector_norm(factors.left, dim=0)
    return factors.left / values, values


def _without(columns: Tensor, values: Tensor) -> Tensor:
    """Orthonormal rows: what ``diag(values)`` maps to the complement of columns (n, c), as coordinates of the rows."""
    dual = columns / values[:, None]
    dual = dual / torch.linalg.vector_norm(dual, dim=0)
    basis: Tensor = torch.linalg.qr(dual, mode="complete").Q
    return basis[:, dual.shape[1] :].T
