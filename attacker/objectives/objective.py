"""Objective of gradient matching: distances between gradients, and priors on images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from attacker.gradients.base import GradientProducts, Products
from attacker.objectives.image_priors import Prior
from attacker.optim.active_set import take
from attacker.optim.problem import Objective
from attacker.optim.random_streams import Draws


@dataclass(frozen=True, kw_only=True)
class BottleneckNoise:
    """The noise that a model's random layers are given.

    Attributes:
        draws: Generators of all candidates.
        batch: Images of one candidate.
        latents: Shape of each random layer's noise for one image, in order of execution; empty without any.
        average: Draws that a candidate's distance is the mean over, 1 or more.
        known: (victims, batch, ...) for each random layer whose noise is known, None for the others; empty when none
            is.
        fixed: Noise drawn already, (victims, restarts * average, batch, ...) for each layer; None draws anew.
    """

    draws: Draws
    batch: int
    latents: Sequence[Sequence[int]]
    average: int = 1
    known: Sequence[Tensor | None] = ()
    fixed: Sequence[Tensor] | None = None

    def __call__(self, like: Tensor) -> Sequence[Tensor]:
        """(victims, restarts * average, batch, ...) for each layer, in dtype and on the device of ``like``."""
        if self.fixed is not None:
            return self.fixed
        return [self.of_layer(place, like) for place in range(len(self.latents))]

    def of_layer(self, place: int, like: Tensor) -> Tensor:
        """Known noise of one random layer, the same for all restarts and draws, or a fresh draw."""
        together = self.draws.axes[1] * self.average
        value = self.known[place] if self.known else None
        if value is not None:
            return value.to(like).unsqueeze(1).expand(-1, together, *value.shape[1:])
        drawn = self.draws.normal(self.average * self.batch, *self.latents[place], like=like)
        return drawn.reshape(drawn.shape[0], together, self.batch, *drawn.shape[3:])

    def drawn_once(self, like: Tensor) -> BottleneckNoise:
        """One draw for good: a line search must see the same loss when it looks twice."""
        return replace(self, fixed=self(like))

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> BottleneckNoise:
        """The noise of some candidates; see `Objective.keep`."""
        spread = self.spread(restarts)
        fixed = None if self.fixed is None else [take(values, victims, spread) for values in self.fixed]
        known = [None if values is None else values[list(victims)] for values in self.known]
        return replace(self, draws=self.draws.keep(victims, restarts), fixed=fixed, known=known)

    def spread(self, restarts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Places of the draws of some restarts among all draws."""
        return [[r * self.average + k for r in row for k in range(self.average)] for row in restarts]


@dataclass(frozen=True, kw_only=True)
class GradientObjective(Objective):
    """The distance between candidates' and observed gradients, plus priors on the images.

    Attributes:
        products: Inner products of the gradients.
        measure: Makes distances of them.
        labels: (victims, 1 or restarts, batch), or what else the victim's loss takes.
        noise: Noise of the bottlenecks. The mean of the distances of several draws counts, which is the expectation of
            fresh noise at each step. (The distance of the mean gradient would be another loss: the client's gradient is
            one draw and not the mean, so that the true image does not match it either.)
        weighted_priors: Priors with their weights.
    """

    products: GradientProducts
    measure: Callable[[Products], Tensor]
    labels: Tensor
    noise: BottleneckNoise
    weighted_priors: Sequence[tuple[float, Prior]] = field(default=())

    def distances(self, x: Tensor) -> Tensor:
        """Distances of candidates, (victims, restarts, batch, channels, height, width)."""
        return self.distances_with(x, self.labels)

    def distances_with(self, images: Tensor, labels: Tensor) -> Tensor:
        """As `distances`, with other labels."""
        return self.distances_at(images, labels, self.noise(images))

    def distances_at(self, images: Tensor, labels: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """As `distances`, with other labels and given noise, (victims, restarts * draws, batch, ...) for each layer."""
        count = self.noise.average
        if count == 1:
            return self.measure(self.products(images, labels, noise))
        labels = labels if labels.shape[1] == 1 else labels.repeat_interleave(count, dim=1)
        distances = self.measure(self.products(images.repeat_interleave(count, dim=1), labels, noise))
        return distances.reshape(*images.shape[:2], count).mean(dim=2)

    def priors(self, x: Tensor) -> Tensor:
        """Weighted sum of all priors, (victims, restarts)."""
        return sum((weight * prior(x) for weight, prior in self.weighted_priors), super().priors(x))

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same objective for some of the candidates; see `Objective.keep`."""
        shared = self.labels.shape[1] == 1
        return replace(
            self,
            products=self.products.keep(victims, self.noise.spread(restarts)),
            labels=self.labels[list(victims)] if shared else take(self.labels, victims, restarts),
            noise=self.noise.keep(victims, restarts),
            weighted_priors=[(weight, prior.keep(victims, restarts)) for weight, prior in self.weighted_priors],
        )
