"""Adam's direction for many candidates, whose learning rates differ and some of whom leave."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.optim.active_set import Cut

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class Adam:
    """The direction of Kingma and Ba (ICLR 2015, algorithm 1), with the paper's constants; the step is left to others.

    Args:
        like: Candidates, (victims, restarts, ...).
    """

    def __init__(self, like: Tensor) -> None:
        self._mean = torch.zeros_like(like)
        self._square = torch.zeros_like(like)
        self._steps = 0

    def direction(self, gradient: Tensor) -> Tensor:
        """Take in one gradient; the step to subtract is this times the learning rate."""
        self._steps += 1
        first, second = _BETAS
        self._mean = torch.lerp(self._mean, gradient, 1 - first)
        self._square = second * self._square + (1 - second) * gradient.square()
        size = (self._square / (1 - second**self._steps)).sqrt() + _EPSILON
        return self._mean / (size * (1 - first**self._steps))

    def keep(self, cut: Cut) -> None:
        """Go on with some of the candidates."""
        self._mean, self._square = cut.take(self._mean), cut.take(self._square)
