"""Interface between optimisers and what they minimise, for many candidates at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from torch import Tensor


class Objective(ABC):
    """A loss ``distance + prior`` for every candidate.

    A candidate's distance must not depend on the other candidates, so that they can leave one by one.
    """

    @abstractmethod
    def distances(self, x: Tensor) -> Tensor:
        """Distances alone, without priors, (victims, restarts), differentiable with respect to ``x``.

        Args:
            x: Candidates, (victims, restarts, ...).
        """

    def priors(self, x: Tensor) -> Tensor:
        """Weighted sum of all priors, (victims, restarts), differentiable; 0 without any."""
        return x.new_zeros(x.shape[:2])

    @abstractmethod
    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same objective for some of the candidates; this one stays as it is.

        Args:
            victims: Indices of the victims that stay, at least one.
            restarts: For each of these the indices of its restarts that stay, as many for each.
        """
