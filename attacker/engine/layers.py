"""One layer's share of the inner products, from what the layer receives and the gradients of its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from attacker.engine.factors import LayerRows, WeightTarget, vector_products
from attacker.engine.products import precise


class LayerShare(NamedTuple):
    """One layer's share.

    Attributes:
        vectors: Gradients for `LayerProducts.vectors`, (victims, restarts, numbers) each; they are small, and those of
            all layers are multiplied together.
        products: Inner products and squares over the other parameters, (victims, restarts) each, in float64; None when
            no other counts.
    """

    vectors: Sequence[Tensor]
    products: tuple[Tensor, Tensor] | None


class LayerProducts(ABC):
    """What one layer adds to the inner products and squares of all candidates.

    Attributes:
        vectors: Observed gradients of the layer's parameters that are vectors, (victims, numbers) each.
    """

    vectors: tuple[Tensor, ...] = ()

    @abstractmethod
    def __call__(self, received: Tensor, delta: Tensor, victims: int, restarts: int) -> LayerShare:
        """The layer's share for every candidate.

        Args:
            received: The layer's input for the flat batch, (victims * restarts * batch, ...).
            delta: Gradient of the loss with respect to the layer's output, (victims * restarts * batch, ...).
            victims: Number of victims.
            restarts: Number of restarts.
        """

    def keep(self, victims: Sequence[int]) -> Self:
        """The same for some of the victims, in the given order."""
        kept = copy(self)
        kept.vectors = tuple(one[list(victims)] for one in self.vectors)
        return kept


class LinearProducts(LayerProducts):
    """A Linear layer's share, by Gram matrices over the rows or, for many rows, by the weight gradient.

    Args:
        weights: Observed weight gradients (out, in), one for each victim; none when they do not count.
        biases: Observed bias gradients (out,), one for each victim; none when they do not count.
        rows: Rows of one candidate.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor], rows: int) -> None:
        self._weight = WeightTarget([one.unsqueeze(0) for one in weights], rows) if weights else None
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
