"""History of the distances of a search: their start, and whether they still fell at its end."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.optim.active_set import Survivors

_MOMENTS = 100
_LATE = 0.9
"""Share of a candidate's own search after which a fall counts as late."""


class Course:
    """The distance of every candidate's best iterate at about a hundred moments of a search.

    Args:
        distances: (victims, restarts) of all candidates; only their shape, dtype and device count.
        iterations: Iterations of the search.
    """

    def __init__(self, distances: Tensor, iterations: int) -> None:
        self._every = max(1, iterations // _MOMENTS)
        self._seen = [torch.full_like(distances, torch.nan) for _ in range(iterations // self._every + 1)]

    def note(self, iteration: int, distances: Tensor, survivors: Survivors) -> None:
        """Take in what was measured, at moments that count.

        Args:
            iteration: Steps done before these distances were measured; 0 for the start.
            distances: (victims, restarts) of the candidates that are left, at their best iterates.
            survivors: Which candidates these are.
        """
        if iteration % self._every == 0 and iteration // self._every < len(self._seen):
            survivors.put(distances.detach(), self._seen[iteration // self._every])

    @property
    def starts(self) -> Tensor:
        """(victims, restarts), the distance at the start; NaN where it was not measured."""
        return self._seen[0].clone()

    def late_falls(self, distances: Tensor, steps: Tensor) -> Tensor:
        """Share by which each smallest distance still fell over the last tenth of its candidate's own search.

        Args:
            distances: (victims, restarts), at the end.
            steps: (victims, restarts), after which candidates were finished.

        Returns:
            (victims, restarts), from 0 to 1; 0 where nothing was left to fall, NaN where it is not known.
        """
        moments = (_LATE * steps / self._every).long().clamp(max=len(self._seen) - 1)
        # The iterate that is given may be the last, or have a larger distance for a smaller prior: what counts is the
        # smallest distance until then and after.
        smallest = torch.stack(self._seen, dim=2).nan_to_num(nan=torch.inf).cummin(dim=2).values
        before = smallest.gather(2, moments.unsqueeze(2)).squeeze(2)
        after = torch.fmin(smallest[:, :, -1], distances)
        falls = torch.where(before > 0, (before - after) / before, 0.0).clamp(max=1)  # rounding may end below zero
        return torch.where(before.isfinite(), falls, torch.nan)
