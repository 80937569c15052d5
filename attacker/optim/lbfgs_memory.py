"""Memory of L-BFGS of the curvature, for many candidates at once."""

from __future__ import annotations

import torch
from torch import Tensor

from attacker.optim.double_precision import precise


class CurvaturePairs:
    """The last steps s and changes of gradient y of each candidate, and their inner products.

    The direction comes from the compact form of the two-loop recursion (Byrd, Nocedal, Schnabel, Mathematical
    Programming 1994, theorem 2.2): the same numbers by two matrix products and two triangular systems instead of
    ``2 * size`` dependent steps. Pairs lie in rings, because candidates accept steps at different times.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        candidates, numbers = like.shape
        self._size = size
        self._steps = like.new_zeros(candidates, size, numbers)
        self._changes = like.new_zeros(candidates, size, numbers)
        self._step_change = precise(like.new_zeros(candidates, size, size))  # s_i.y_j
        self._change_change = torch.zeros_like(self._step_change)  # y_i.y_j
        self.count = torch.zeros(candidates, dtype=torch.long, device=like.device)

    def add(self, which: Tensor, step: Tensor, change: Tensor) -> None:
        """Remember a pair for some candidates; those without positive curvature (rounding) do not fit."""
        curvature = row_products(step, change)
        tiny = torch.finfo(step.dtype).eps * row_products(step, step).sqrt() * row_products(change, change).sqrt()
        rows = (which & (curvature > tiny)).nonzero().squeeze(1)
        if not len(rows):
            return
        slots = self.count[rows] % self._size
        self._steps[rows, slots] = step[rows]
        self._changes[rows, slots] = change[rows]
        with_change = precise(self._changes @ change.unsqueeze(2)).squeeze(2)[rows]
        self._step_change[rows, :, slots] = precise(self._steps @ change.unsqueeze(2)).squeeze(2)[rows]
        self._step_change[rows, slots] = precise(self._changes @ step.unsqueeze(2)).squeeze(2)[rows]
        self._change_change[rows, :, slots] = with_change
        self._change_change[rows, slots] = with_change
        self.count[rows] += 1

    def clear(self, which: Tensor) -> None:
        """Forget all pairs of some candidates."""
        if bool(which.any()):
            for values in (self._steps, self._changes, self._step_change, self._change_change):
                values[which] = 0
            self.count[which] = 0

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the candidates, by their places."""
        self._steps, self._changes = self._steps[rows], self._changes[rows]
        self._step_change, self._change_change = self._step_change[rows], self._change_change[rows]
        self.count = self.count[rows]

    def direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian's estimate times ``gradient``, (c, n)."""
        used = min(self._size, int(self.count.max()))
        if not used:
            return -gradient
        steps, changes = self._steps[:, :used], self._changes[:, :used]
        # From the oldest pair to the newest; slots that are empty come last and contribute zero.
        oldest = torch.where(self.count > self._size, self.count % self._size, 0)
        order = (oldest.unsqueeze(1) + torch.arange(used, device=gradient.device)) % used
        s_y, y_y = self._ordered(self._step_change, order), self._ordered(self._change_change, order)
        pairs = s_y.diagonal(dim1=1, dim2=2)
        newest = (self.count.clamp(min=1, max=self._size) - 1).unsqueeze(1)
        last_pair, last_square = pairs.gather(1, newest), y_y.diagonal(dim1=1, dim2=2).gather(1, newest)
        scale = torch.where(last_pair > 0, last_pair / last_square, 1)
        upper = s_y.triu() + torch.diag_embed((pairs == 0).to(pairs.dtype))
        along_steps = precise(steps @ gradient.unsqueeze(2)).squeeze(2).gather(1, order)
        along_changes = precise(changes @ gradient.unsqueeze(2)).squeeze(2).gather(1, order)
        u = torch.linalg.solve_triangular(upper, along_steps.unsqueeze(2), upper=True).squeeze(2)
        right = pairs * u + scale * ((y_y @ u.unsqueeze(2)).squeeze(2) - along_changes)
        w = torch.linalg.solve_triangular(upper.mT, right.unsqueeze(2), upper=False).squeeze(2)
        of_steps, of_changes = (torch.zeros_like(v).scatter(1, order, v) for v in (w, -scale * u))
        moved = (steps.mT @ of_steps.to(gradient.dtype).unsqueeze(2)).squeeze(2)
        bent = (changes.mT @ of_changes.to(gradient.dtype).unsqueeze(2)).squeeze(2)
        return -(scale.to(gradient.dtype) * gradient + moved + bent)

    def _ordered(self, products: Tensor, order: Tensor) -> Tensor:
        used = order.shape[1]
        rows = products[:, :used, :used].gather(1, order.unsqueeze(2).expand(-1, -1, used))
        return rows.gather(2, order.unsqueeze(1).expand(-1, used, -1))


def row_products(rows: Tensor, other: Tensor) -> Tensor:
    """Inner product of each row in float64, (c,)."""
    return (precise(rows) * precise(other)).sum(dim=1)
