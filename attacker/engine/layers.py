"""One layer's share of the inner products, from what the layer receives and the gradients of its output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from attacker.engine.factors import LayerRows, WeightTarget


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
