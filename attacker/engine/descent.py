"""First-order search for inputs whose gradient matches the observed one; keeps the best iterate that was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.engine.distance import total_variation
from attacker.engine.products import precise

# Fractions of the iterations after which the learning rate falls (reference code of Inverting Gradients).
MILESTONES = (3 / 8, 5 / 8, 7 / 8)
DECAY = 0.1
_REPORTS = 100


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What a descent found, restarts not yet compared.

    Attributes:
        candidates: (victims, restarts, batch, channels, height, width), for each the iterate with the smallest measured
            loss; the start where none was finite.
        distances: (victims, restarts), the distance measured at exactly that iterate, without priors; infinite where
            no iterate had a finite one.
        diverged: (victims, restarts), whether the distance was not finite when the descent ended.
        iterations: Optimiser steps done.
    """

    candidates: Tensor
    distances: Tensor
    diverged: Tensor
    iterations: int

    def best_restart(self) -> Tensor:
        """Each victim's restart with the smallest distance, (victims,); a diverged one wins only among its like."""
        alone = self.diverged.all(dim=1, keepdim=True)
        return self.distances.masked_fill(self.diverged & ~alone, torch.inf).argmin(dim=1)


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Adam on all candidates at once, each with its own loss ``distance + total_variation * TV``.

    Attributes:
        iterations: Optimiser steps.
        learning_rate: Initial step, in the model's normalised scale; times 0.1 at 3/8, 5/8 and 7/8 of the iterations.
        total_variation: Weight of the anisotropic total variation.
        signed: Whether Adam receives the sign of the gradient instead of the gradient.
    """

    iterations: int
    learning_rate: float
    total_variation: float
    signed: bool

    def run(
        self,
        distance: Callable[[Tensor], Tensor],
        start: Tensor,
        *,
        project: Callable[[Tensor], Tensor] | None,
        progress: Callable[[float, float | None], None] | None,
    ) -> Matched:
        """Descend from ``start``, (victims, restarts, batch, channels, height, width), normalised.

        Args:
            distance: Maps candidates to distances, (victims, restarts), differentiably; a candidate's distance must not
                depend on the others. It may draw fresh noise at each call.
            start: First iterate.
            project: Applied after each step, for example on the box of valid images; None for no bounds.
            progress: Receives the share done and the smallest distance so far, about 100 times.

        Returns:
            The best measured iterates. The last iterate is measured too.
        """
        x = start.detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([x], lr=self.learning_rate)
        decay = torch.optim.lr_scheduler.MultiStepLR(adam, [int(m * self.iterations) for m in MILESTONES], DECAY)
        best = _Best(x.detach())
        every = max(1, self.iterations // _REPORTS)
        for iteration in range(self.iterations):
            matched = distance(x)
            loss = self._with_prior(matched, x)
            best.consider(x.detach(), matched.detach(), loss.detach())
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            x.grad = gradient.sign() if self.signed else gradient
            adam.step()
            decay.step()
            if project is not None:
                with torch.no_grad():
                    x.copy_(project(x))
            if iteration % every == 0:
                if not bool(matched.isfinite().any()):  # adam never comes back from NaN
                    return best.matched(diverged=~matched.isfinite(), iterations=iteration + 1)
                if progress is not None:
                    progress(iteration / self.iterations, float(best.distances.min()))
        with torch.no_grad():
            last = distance(x)
            best.consider(x.detach(), last, self._with_prior(last, x))
        if progress is not None:
            progress(1.0, float(best.distances.min()))
        return best.matched(diverged=~last.isfinite(), iterations=self.iterations)

    def _with_prior(self, distance: Tensor, x: Tensor) -> Tensor:
        return distance + self.total_variation * total_variation(x) if self.total_variation else distance


class _Best:
    """For every candidate the iterate with the smallest loss so far, and the distance measured there."""

    def __init__(self, start: Tensor) -> None:
        self.iterates = start.clone()
        self.distances = precise(start.new_full(start.shape[:2], torch.inf))
        self._losses = self.distances

    def consider(self, x: Tensor, distances: Tensor, losses: Tensor) -> None:
        """Take over the iterates whose loss was just measured to be smaller; NaN is smaller than nothing."""
        improved = distances.isfinite() & (losses < self._losses)
        self.iterates = torch.where(improved.reshape(*improved.shape, 1, 1, 1, 1), x, self.iterates)
        self.distances = torch.where(improved, distances, self.distances)
        self._losses = torch.where(improved, losses, self._losses)

    def matched(self, *, diverged: Tensor, iterations: int) -> Matched:
        return Matched(candidates=self.iterates, distances=self.distances, diverged=diverged, iterations=iterations)
