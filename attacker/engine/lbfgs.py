"""L-BFGS on all candidates at once: each has its own history, step and end; keeps the best measured iterate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.engine.descent import Matched
from attacker.engine.products import precise

# Shares of the slope at the start of a line that a step must gain, and that may be left at its end (Nocedal, Wright,
# Numerical Optimization, section 3.1: the values for quasi-Newton methods).
SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
_TRIALS_PER_LINE = 30
_REPORTS = 100


@dataclass(frozen=True, kw_only=True)
class LBFGS:
    """Limited-memory BFGS for smooth losses, without bounds and priors.

    Every iteration evaluates all candidates once, each at the trial point of its own line search. The search is the
    bisection of Lewis and Overton (Mathematical Programming 2013, algorithm 2.6) for the weak Wolfe conditions: a step
    that gains too little, or is not finite, halves the bracket; one that leaves too steep a slope doubles the step or
    halves the bracket from the other side. It needs no interpolation, cannot be misled by values beyond the float
    range and keeps ``s.y`` positive, so that directions descend; candidates need not be at the same stage. torch's
    optimiser without line search, which the reference code of DLG uses, diverges from many starts.

    A candidate whose line fails forgets its history and tries steepest descent; when that fails too, nothing smaller
    can be measured, and it is frozen. The search ends when all are.

    Attributes:
        iterations: Evaluations of all candidates, line searches included.
        learning_rate: First trial on a line, as a multiple of the quasi-Newton step.
        history: Steps that each candidate remembers; memory is ``2 * history`` times that of the candidates.
    """

    iterations: int
    learning_rate: float
    history: int

    def run(
        self,
        distance: Callable[[Tensor], Tensor],
        start: Tensor,
        *,
        progress: Callable[[float, float | None], None] | None,
    ) -> Matched:
        """Descend from ``start``, (victims, restarts, ...).

        Args:
            distance: Maps candidates to distances, (victims, restarts), differentiably; a candidate's distance must not
                depend on the others, and must be the same when it is measured again.
            start: First iterate, measured as well.
            progress: Receives the share done and the smallest distance so far, about 100 times.

        Returns:
            The best measured iterates. A candidate is diverged when its line search ended at a value that is not
            finite, or when its start had none.
        """

        def measure(flat: Tensor) -> tuple[Tensor, Tensor]:
            x = flat.reshape(start.shape).requires_grad_(True)
            values = distance(x)
            (gradient,) = torch.autograd.grad(values.sum(), x)
            return precise(values.detach().flatten()), gradient.reshape(flat.shape)

        flat = start.detach().reshape(start.shape[0] * start.shape[1], -1)
        lines = _Lines(flat, *measure(flat.clone()), self.history, self.learning_rate)
        every = max(1, self.iterations // _REPORTS)
        done = 0
        while done < self.iterations and bool(lines.active.any()):
            if progress is not None and done % every == 0:
                progress(done / self.iterations, float(lines.best_values.min()))
            lines.learn(*measure(lines.trial()))
            done += 1
        if progress is not None:
            progress(1.0, float(lines.best_values.min()))
        return Matched(
            candidates=lines.best.reshape(start.shape),
            distances=lines.best_values.reshape(start.shape[:2]),
            diverged=lines.diverged.reshape(start.shape[:2]),
            iterations=max(1, done),
        )


class _Lines:
    """One line search for each of c candidates with n numbers; positions and gradients are (c, n), the rest (c,)."""

    def __init__(self, x: Tensor, value: Tensor, gradient: Tensor, history: int, first_trial: float) -> None:
        self._x, self._value, self._gradient = x, value, gradient
        self._first_trial = first_trial
        self._history = _History(x, history)
        finite = value.isfinite() & gradient.isfinite().all(dim=1)
        self.best, self.best_values = x, value.masked_fill(~value.isfinite(), torch.inf)
        self.diverged = ~finite
        self.active = finite & (gradient != 0).any(dim=1)
        self._steepest = torch.ones_like(self.active)
        self._direction, self._slope = torch.zeros_like(x), torch.zeros_like(value)
        self._low, self._high = torch.zeros_like(value), torch.full_like(value, torch.inf)
        self._step, self._trials = torch.zeros_like(value), torch.zeros_like(value)
        self._turn(self.active)

    def trial(self) -> Tensor:
        """The next points to measure; frozen candidates stay where they are."""
        step = torch.where(self.active, self._step, 0).to(self._x.dtype)
        self._tried = self._x + step.unsqueeze(1) * torch.where(self.active.unsqueeze(1), self._direction, 0)
        return self._tried.clone()

    def learn(self, value: Tensor, gradient: Tensor) -> None:
        """Take in what was measured at the trial points: accept a step, or move the brackets, or give up."""
        improved = self.active & (value < self.best_values)
        self.best = torch.where(improved.unsqueeze(1), self._tried, self.best)
        self.best_values = torch.where(improved, value, self.best_values)

        finite = value.isfinite() & gradient.isfinite().all(dim=1)
        gains = finite & (value <= self._value + SUFFICIENT_DECREASE * self._step * self._slope)
        level = gains & (_dot(gradient, self._direction) >= CURVATURE * self._slope)
        self._trials = self._trials + 1
        last = self._trials >= _TRIALS_PER_LINE
        # A decrease as small as the rounding of the position is no step at all.
        moved = (self._tried != self._x).any(dim=1)
        accepted = self.active & moved & (level | (gains & last))
        failed = self.active & ~accepted & (last | ~moved)
        self._high = torch.where(gains, self._high, self._step)
        self._low = torch.where(gains, self._step, self._low)
        self._step = torch.where(self._high.isinf(), 2 * self._step, (self._low + self._high) / 2)

        if bool(accepted.any()):
            self._history.add(accepted, self._tried - self._x, gradient - self._gradient)
            self._x = torch.where(accepted.unsqueeze(1), self._tried, self._x)
            self._gradient = torch.where(accepted.unsqueeze(1), gradient, self._gradient)
            self._value = torch.where(accepted, value, self._value)
        self._freeze(failed & self._steepest, finite)
        self._freeze(accepted & ~(self._gradient != 0).any(dim=1), finite)
        self._history.clear(failed)
        self._turn(self.active & (accepted | failed))

    def _freeze(self, which: Tensor, finite: Tensor) -> None:
        self.diverged = self.diverged | (which & ~finite)
        self.active = self.active & ~which

    def _turn(self, which: Tensor) -> None:
        """New lines for some candidates."""
        if not bool(which.any()):
            return
        direction = self._history.direction(self._gradient)
        slope = _dot(direction, self._gradient)
        lost = which & ~(slope < 0)  # by rounding only: exact curvature pairs give a descent direction
        self._history.clear(lost)
        direction = torch.where(lost.unsqueeze(1), -self._gradient, direction)
        slope = torch.where(lost, -_dot(self._gradient, self._gradient), slope)
        self._direction = torch.where(which.unsqueeze(1), direction, self._direction)
        self._slope = torch.where(which, slope, self._slope)
        steepest = self._history.count == 0
        self._steepest = torch.where(which, steepest, self._steepest)
        # Without history the gradient's size says nothing about the distance to go (the start of torch's L-BFGS).
        unit = torch.where(steepest, (1 / precise(self._gradient.abs().sum(dim=1))).clamp(max=1), 1)
        self._step = torch.where(which, self._first_trial * unit, self._step)
        self._low = self._low.masked_fill(which, 0)
        self._high = self._high.masked_fill(which, torch.inf)
        self._trials = self._trials.masked_fill(which, 0)


class _History:
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
        curvature = _dot(step, change)
        tiny = torch.finfo(step.dtype).eps * _dot(step, step).sqrt() * _dot(change, change).sqrt()
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


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Inner product of each row in float64, (c,)."""
    return (precise(one) * precise(other)).sum(dim=1)
