"""Linear layers: their forward pass with each victim's weights, and their share of the inner products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from attacker.gradients.ghost.factors import LayerRows, WeightTarget, vector_products
from attacker.gradients.ghost.layer_kinds import (
    Forward,
    LayerKind,
    LayerProducts,
    LayerShare,
    LinearPart,
    ObservedLayer,
    WeightChange,
    register_layer,
)
from attacker.gradients.ghost.onednn import MatrixProduct, worth_it
from attacker.optim.double_precision import precise


@register_layer(nn.Linear, LinearPart)
class LinearKind(LayerKind[nn.Linear | LinearPart]):
    """Rows times a matrix."""

    def is_cheaper(self, layer: nn.Linear | LinearPart) -> bool:
        """See `worth_it`."""
        return worth_it(layer.weight)

    def forward(
        self, layer: nn.Linear | LinearPart, tensors: Mapping[str, Tensor | None], *, together: bool
    ) -> Forward:
        """Batched matrix products; see `LayerKind.forward`."""
        del layer, together
        weights, biases = tensors["weight"], tensors["bias"]
        assert weights is not None
        if len(weights) == 1 and worth_it(weights):
            return _shared_linear(weights[0], None if biases is None else biases[0])
        transposed = weights.mT

        def linear(received: Tensor) -> Tensor:
            rows = received.reshape(len(transposed), -1, received.shape[-1])
            out = rows @ transposed if biases is None else torch.baddbmm(biases.unsqueeze(1), rows, transposed)
            return out.reshape(*received.shape[:-1], -1)

        return linear

    def change(self, layer: nn.Linear | LinearPart, candidates: int) -> WeightChange | None:
        """From the rows of earlier steps; see `LayerKind.change`."""
        return LinearChange(candidates, biased=layer.bias is not None)

    def products(self, layer: nn.Linear | LinearPart, observed: ObservedLayer) -> LayerProducts:
        """From factors, or by the mask of kept elements."""
        del layer
        weights, biases = (observed.gradients.get(name, ()) for name in ("weight", "bias"))
        if observed.kept and weights:
            return KeptLinearProducts(weights, biases)
        rows = observed.inputs[..., 0].numel() // len(observed.inputs)
        return LinearProducts(weights, biases, observed.batch_size * rows)


def _shared_linear(weight: Tensor, bias: Tensor | None) -> Forward:
    def linear(received: Tensor) -> Tensor:
        out: Tensor = MatrixProduct.apply(received.reshape(-1, received.shape[-1]), weight, bias)
        return out.reshape(*received.shape[:-1], -1)

    return linear


class LinearChange(WeightChange):
    """Change of a Linear layer's weights, kept as its factors: no candidate's weight is formed.

    Args:
        candidates: How many there are.
        biased: Whether the layer has a bias.
        factors: Rows received (candidates, rows, in) and output gradients (candidates, rows, out) so far.
    """

    def __init__(self, candidates: int, *, biased: bool, factors: tuple[Tensor, Tensor] | None = None) -> None:
        self._candidates, self._biased, self._factors = candidates, biased, factors

    def moved(self, received: Tensor, delta: Tensor) -> Self:
        """See `WeightChange.moved`."""
        new = self._rows(received), self._rows(delta)
        old = self._factors
        joined = new if old is None else (torch.cat([old[0], new[0]], dim=1), torch.cat([old[1], new[1]], dim=1))
        return type(self)(self._candidates, biased=self._biased, factors=joined)

    def __call__(self, received: Tensor) -> Tensor:
        """See `WeightChange.__call__`."""
        assert self._factors is not None  # nothing has moved before the first step
        a, d = self._factors
        out = (self._rows(received) @ a.mT) @ d
        if self._biased:
            out = out + d.sum(1, keepdim=True)
        return out.reshape(*received.shape[:-1], -1)

    def _rows(self, values: Tensor) -> Tensor:
        return values.reshape(self._candidates, -1, values.shape[-1])


class LinearProducts(LayerProducts):
    """A Linear layer's share, by Gram matrices over the rows or, for many rows, by the weight gradient.

    Args:
        weights: Observed weight gradients (out, in), one for each victim; none when they do not count.
        biases: Observed bias gradients (out,), one for each victim; none when they do not count.
        rows: Rows of one candidate.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], rows: int) -> None:
        self._weight = WeightTarget([gradient.unsqueeze(0) for gradient in weights], rows) if weights else None
        self.vectors = (torch.stack(list(biases)),) if biases else ()

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Weight and bias; see `LayerProducts.__call__`."""
        a = received.reshape(victims, restarts, -1, received.shape[-1])
        d = delta.reshape(victims, restarts, -1, delta.shape[-1])
        vectors = [d.sum(2) for _ in self.vectors]
        return LayerShare(vectors, None if self._weight is None else LayerRows(a, d).weight_products(self._weight))

    def keep(self, victims: Sequence[int]) -> Self:
        """Some of the victims; see `LayerProducts.keep`."""
        kept = super().keep(victims)
        kept._weight = None if self._weight is None else self._weight.keep(victims)
        return kept


class KeptLinearProducts(LayerProducts):
    """A Linear layer's share over the weights alone whose observed gradient G is not zero, by the mask M of these.

    One row is enough for ``|(d a^T) o M|^2 = (d o d)^T M (a o a)``; of several the gradient is formed.

    Args:
        weights: Observed weight gradients (out, in), one for each victim.
        biases: Observed bias gradients (out,), one for each victim; none when they do not count.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._target = torch.stack(list(weights))
        self._mask = (self._target != 0).to(self._target.dtype)
        self.vectors = (torch.stack(list(biases)),) if biases else ()

    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """Weight and bias; see `LayerProducts.__call__`."""
        a = received.reshape(victims, restarts, -1, received.shape[-1])
        d = delta.reshape(victims, restarts, -1, delta.shape[-1])
        vectors = [d.sum(2) for _ in self.vectors]
        if a.shape[2] > 1:
            gradient = (d.mT @ a) * self._mask.unsqueeze(1)
            return LayerShare(vectors, vector_products(gradient.flatten(2), self._target.flatten(1)))
        a, d = a.squeeze(2), d.squeeze(2)  # (v, r, in or out)
        inner = torch.linalg.vecdot(precise(d @ self._target), precise(a))
        square = torch.linalg.vecdot(precise(d.square() @ self._mask), precise(a).square())
        return LayerShare(vectors, (inner, square))

    def keep(self, victims: Sequence[int]) -> Self:
        """Some of the victims; see `LayerProducts.keep`."""
        kept, chosen = super().keep(victims), list(victims)
        kept._target, kept._mask = self._target[chosen], self._mask[chosen]
        return kept
