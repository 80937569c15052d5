"""Result of a search, and the best iterate of every candidate while it goes on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.optim.active_set import Cut
from attacker.optim.double_precision import precise


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What a search found, restarts not yet compared.

    Attributes:
        candidates: (victims, restarts, batch, channels, height, width), for each the iterate with the smallest measured
            loss; the start where none was finite.
        distances: (victims, restarts), the distance measured at exactly that iterate, without priors; infinite where
            no iterate had a finite one.
        diverged: (victims, restarts), whether the candidate ended at values that are not finite.
        iterations: (victims, restarts), optimiser steps done until the candidate was finished or given up.
        starts: (victims, restarts), the distance at the start; NaN where it was not measured.
        late_falls: (victims, restarts), share by which the distance fell over the last tenth of the candidate's own
            search; NaN where it is not known.
        cut: Whether a deadline ended the search before its iterations; see `attacker.optim.deadline`.
    """

    candidates: Tensor
    distances: Tensor
    diverged: Tensor
    iterations: Tensor
    starts: Tensor
    late_falls: Tensor
    cut: bool = False

    def best_restart(self) -> Tensor:
        """Each victim's restart with the smallest distance, (victims,); a diverged one wins only among its like."""
        alone = self.diverged.all(dim=1, keepdim=True)
        return self.distances.masked_fill(self.diverged & ~alone, torch.inf).argmin(dim=1)


@dataclass
class Best:
    """For every candidate the iterate with the smallest loss so far, and what was measured there.

    Attributes:
        iterates: (victims, restarts, ...).
        distances: (victims, restarts), without priors; infinite before anything finite was measured.
        losses: (victims, restarts), with priors.
    """

    iterates: Tensor
    distances: Tensor
    losses: Tensor

    @classmethod
    def of(cls, start: Tensor) -> Best:
        """Nothing measured yet."""
        nothing = precise(start.new_full(start.shape[:2], torch.inf))
        return cls(start.clone(), nothing, nothing)

    def consider(self, x: Tensor, distances: Tensor, losses: Tensor, allowed: Tensor) -> Tensor:
        """Take over iterates whose loss was just measured to be smaller; NaN is smaller than nothing.

        Args:
            x: What was measured.
            distances: There, without priors.
            losses: There, with priors.
            allowed: (victims, restarts), candidates that are not finished.

        Returns:
            (victims, restarts), those that improved.
        """
        improved = allowed & distances.isfinite() & (losses < self.losses)
        self.iterates = torch.where(improved.reshape(*improved.shape, *[1] * (x.dim() - 2)), x, self.iterates)
        self.distances = torch.where(improved, distances, self.distances)
        self.losses = torch.where(improved, losses, self.losses)
        return improved

    def forget(self, which: Tensor) -> None:
        """Hold nothing against the next iterates of some candidates, (victims, restarts)."""
        self.losses = self.losses.masked_fill(which, torch.inf)

    def keep(self, cut: Cut) -> None:
        """Go on with some of the candidates."""
        self.iterates, self.distances, self.losses = map(cut.take, (self.iterates, self.distances, self.losses))
