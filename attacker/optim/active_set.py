"""Active set of a search: a rectangle of candidates that shrinks, and the way back to the original order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def take(values: Tensor, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Tensor:
    """Some of the candidates of (victims, restarts, ...), equally many restarts of each victim that stays."""
    rows = torch.tensor(list(victims), device=values.device).unsqueeze(1)
    return values[rows, torch.tensor([list(row) for row in restarts], device=values.device)]


@dataclass(frozen=True)
class Cut:
    """The candidates that go on, by their places in the batch so far.

    Attributes:
        victims: Victims that stay.
        restarts: For each of these the restarts that stay, as many for each.
    """

    victims: list[int]
    restarts: list[list[int]]

    def take(self, values: Tensor) -> Tensor:
        """The part of (victims, restarts, ...) that stays."""
        return take(values, self.victims, self.restarts)


class Survivors:
    """The candidates in the batch of a search, by their original places.

    Products and priors want the axes (victims, restarts), while candidates finish one by one. A victim leaves when all
    its restarts are finished; of the others as many restarts stay as the busiest victim needs, so that some finished
    ones may be carried along. Their results no longer change, hence nothing depends on who shares a batch with whom.

    Args:
        victims: Number of victims at the start.
        restarts: Number of restarts of each.
    """

    def __init__(self, victims: int, restarts: int) -> None:
        self._victims = torch.arange(victims, device="cpu")
        self._restarts = torch.arange(restarts, device="cpu").repeat(victims, 1)

    def plan(self, finished: Tensor) -> Cut | None:
        """What stays when finished candidates leave; None when nobody can leave, or nobody would stay.

        Args:
            finished: (victims, restarts) of the batch so far.
        """
        working = ~finished.cpu()
        busy = working.sum(dim=1)
        width = int(busy.max())
        if width == 0 or (width == working.shape[1] and bool((busy > 0).all())):
            return None
        stays = (busy > 0).nonzero().squeeze(1)
        # Stable, so that restarts keep their order: those that work come first, the finished ones fill up.
        order = torch.sort(working[stays].to(torch.uint8), dim=1, descending=True, stable=True).indices
        return Cut(stays.tolist(), order[:, :width].sort(dim=1).values.tolist())

    def keep(self, cut: Cut) -> None:
        """Go on with some of the candidates."""
        self._victims, self._restarts = self._victims[cut.victims], cut.take(self._restarts)

    def put(self, values: Tensor, into: Tensor) -> None:
        """Write (victims, restarts, ...) of the batch to their original places in ``into``."""
        rows = self._victims.unsqueeze(1).to(into.device)
        into[rows, self._restarts.to(into.device)] = values.to(into.dtype)
