"""The distance of known features, and a prior on images, as an objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from attacker.objectives.feature_prior import FeatureTarget
from attacker.objectives.image_priors import Prior, TotalVariation
from attacker.optim.problem import Objective


@dataclass(frozen=True)
class FeatureObjective(Objective):
    """The features' distance, and a prior on images.

    Much of what features are is the same for all images: distances are shares of what grey images miss.

    Attributes:
        target: The distance.
        unit: That of grey images, positive.
        weight: Weight of the prior.
        prior: On images.
    """

    target: FeatureTarget
    unit: float
    weight: float
    prior: Prior

    @classmethod
    def beside_grey(cls, target: FeatureTarget, like: Tensor, weight: float) -> Self:
        """The distance in units of that of grey images, with a weight of total variation.

        Args:
            target: The distance.
            like: Images in the shape, dtype and place of the candidates, (1, 1, batch, channels, height, width).
            weight: Weight of total variation, 0 or more.
        """
        with torch.no_grad():
            missed = float(target(torch.zeros_like(like)))
        return cls(target, missed or 1.0, weight, TotalVariation())

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances of the features, relative to that of grey images."""
        return self.target(x) / self.unit

    def priors(self, x: Tensor) -> Tensor:
        """The weighted prior."""
        return self.weight * self.prior(x)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same for some of the candidates."""
        return replace(self, target=self.target.keep(victims, restarts), prior=self.prior.keep(victims, restarts))
