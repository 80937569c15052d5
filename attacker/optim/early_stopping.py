"""Early stopping of a candidate: on a plateau, or among the worse half."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.optim.active_set import Cut

# A plateau is where the best loss falls by less than this share. Losses of images that still improve visibly fall
# faster: 1 % of a squared distance is 0.04 dB of PSNR where the two are proportional, as they are near the solution.
PLATEAU_GAIN = 0.01


class Plateau:
    """Counts, for every candidate, the iterations since its best loss last fell by more than 1 %.

    Args:
        losses: Any shape; the smallest losses so far, infinite before anything was measured.
        patience: Iterations without such a gain that make a plateau; 0 sees none.
    """

    def __init__(self, losses: Tensor, patience: int) -> None:
        self._reference = losses
        self._patience = patience
        self.waited = torch.zeros_like(losses)

    def reached(self, losses: Tensor, fresh: Tensor | None = None) -> Tensor:
        """Take in the smallest losses after one more iteration, and say which candidates are on a plateau.

        Args:
            losses: Smallest losses so far.
            fresh: Candidates whose count starts anew, because their learning rate changed.
        """
        # Rounding may end just below zero, where a share of the loss is no gain.
        aim = torch.where(self._reference > 0, (1 - PLATEAU_GAIN) * self._reference, self._reference)
        gained = losses < aim
        self._reference = torch.where(gained, losses, self._reference)
        self.waited = (self.waited + 1).masked_fill(gained if fresh is None else gained | fresh, 0)
        return self.waited >= self._patience if self._patience else torch.zeros_like(gained)

    def keep(self, cut: Cut) -> None:
        """Go on with some of the candidates, (victims, restarts)."""
        self._reference, self.waited = cut.take(self._reference), cut.take(self.waited)


def halving_rungs(iterations: int, rungs: int) -> list[int]:
    """Iterations after which the worse half of the restarts is dropped.

    Successive halving (Jamieson and Talwalkar, AISTATS 2016) spends the same work between any two rungs: half the
    restarts work twice as long.

    >>> halving_rungs(1500, 3)
    [100, 300, 700]
    """
    return [iterations * (2**rung - 1) // (2 ** (rungs + 1) - 1) for rung in range(1, rungs + 1)]


def worse_half(distances: Tensor, finished: Tensor) -> Tensor:
    """The worse half, rounded down, of each victim's restarts that are not finished, (victims, restarts).

    Args:
        distances: (victims, restarts), the smaller the better; never NaN.
        finished: (victims, restarts); who finished well is no reason to drop another.
    """
    working = (~finished).sum(dim=1, keepdim=True)
    # NaN comes after infinity, hence finished restarts after all others; stable, so that of equal ones the first stay.
    order = torch.sort(distances.masked_fill(finished, torch.nan), dim=1, stable=True).indices
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return ~finished & (rank >= working - working // 2)
