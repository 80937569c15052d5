"""L-BFGS on all candidates at once: each has its own history, step and end; keeps the best measured iterate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacker.optim.active_set import Survivors
from attacker.optim.deadline import time_is_up
from attacker.optim.double_precision import precise
from attacker.optim.early_stopping import Plateau
from attacker.optim.lbfgs_memory import CurvaturePairs, row_products
from attacker.optim.loss_history import Course
from attacker.optim.problem import Objective
from attacker.optim.result import Matched

# Shares of the slope at the start of a line that a step must gain, and that may be left at its end (Nocedal, Wright,
# Numerical Optimization, section 3.1: the values for quasi-Newton methods).
SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
_TRIALS_PER_LINE = 30
_REPORTS = 100
# Leaving out candidates copies the histories of the others.
_LOOK_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class LBFGS:
    """Limited-memory BFGS for smooth losses, without bounds.

    Every iteration evaluates the candidates once, each at the trial point of its own line search. The search is the
    bisection of Lewis and Overton (Mathematical Programming 2013, algorithm 2.6) for the weak Wolfe conditions: a step
    that gains too little, or is not finite, halves the bracket; one that leaves too steep a slope doubles the step or
    halves the bracket from the other side. It needs no interpolation, cannot be misled by values beyond the float
    range and keeps ``s.y`` positive, so that directions descend; candidates need not be at the same stage. torch's
    optimiser without line search, which the reference code of DLG uses, diverges from many starts.

    A candidate whose line fails forgets its history and tries steepest descent; when that fails too, nothing smaller
    can be measured, and it is finished. Finished candidates leave the batch; the search ends when all have.

    Attributes:
        iterations: Evaluations, line searches included.
        learning_rate: First trial on a line, as a multiple of the quasi-Newton step.
        history: Steps that each candidate remembers; memory is ``2 * history`` times that of the candidates.
        plateau: Evaluations in which a candidate's best loss has to fall by 1 % (`PLATEAU_GAIN`); 0 waits for ever.
    """

    iterations: int
    learning_rate: float
    history: int
    plateau: int = 0

    def run(
        self,
        objective: Objective,
        start: Tensor,
        *,
        stop_below: float = 0.0,
        progress: Callable[[float, float | None], None] | None = None,
    ) -> Matched:
        """Descend from ``start``, (victims, restarts, ...).

        Args:
            objective: What to minimise; it must be the same when it is measured again.
            start: First iterate, measured as well.
            stop_below: A victim is solved when one of its restarts has a distance below this; 0 never.
            progress: Receives the share done and the smallest distance so far, about 100 times.

        Returns:
            The best measured iterates. A candidate is diverged when its line search ended at a value that is not
            finite, or when its start had none. A deadline (`attacker.optim.deadline`) ends the search early.
        """
        search = _Search(self, objective, start, stop_below)
        every = max(1, self.iterations // _REPORTS)
        for done in range(self.iterations):
            if done % _LOOK_EVERY == 0 and not search.shrink():
                break
            if progress is not None and done % every == 0:
                progress(done / self.iterations, search.smallest_distance())
            search.evaluate(done)
            if done + 1 < self.iterations and time_is_up(len(start)):
                search.cut = True
                break
        matched = search.found()
        if progress is not None:
            progress(1.0, float(matched.distances.min()))
        return matched


class _Search:
    """The state of the candidates still in the batch: (victims, restarts) outside of the lines, flat inside."""

    def __init__(self, settings: LBFGS, objective: Objective, start: Tensor, stop_below: float) -> None:
        self._objective, self._shape, self._stop_below = objective, start.shape, stop_below
        self.cut = False
        flat = start.detach().reshape(start.shape[0] * start.shape[1], -1)
        self._lines = _Lines(flat, *self._measure(flat), settings.history, settings.learning_rate)
        nothing_yet = torch.full_like(self._axes(self._lines.best_values), torch.inf)
        self._plateau = Plateau(nothing_yet, settings.plateau)
        self._steps = torch.ones(start.shape[:2], dtype=torch.long, device=start.device)
        self._survivors = Survivors(*start.shape[:2])
        first = self._axes(self._lines.best_distances)
        self._course = Course(first, settings.iterations)
        self._course.note(0, first, self._survivors)
        self._found = Matched(
            candidates=start.detach().clone(),
            distances=first.clone(),
            diverged=self._axes(self._lines.diverged).clone(),
            iterations=self._steps.clone(),
            starts=first,
            late_falls=first,
        )
        self._stop()

    def evaluate(self, done: int) -> None:
        """Measure the trial points and let the lines learn from them."""
        working = self._axes(self._lines.active)
        self._lines.learn(*self._measure(self._lines.trial()))
        self._steps = torch.where(working, done + 1, self._steps)
        self._course.note(done + 1, self._axes(self._lines.best_distances), self._survivors)
        self._stop()

    def _stop(self) -> None:
        finished = self._plateau.reached(self._axes(self._lines.best_values))
        if self._stop_below:
            solved = self._axes(self._lines.best_distances) < self._stop_below
            finished = finished | solved.any(dim=1, keepdim=True)
        self._lines.stop(finished.flatten())

    def shrink(self) -> bool:
        """Let finished candidates leave; whether any is left to work on."""
        working = self._axes(self._lines.active)
        if not bool(working.any()):
            return False
        cut = self._survivors.plan(~working)
        if cut is None:
            return True
        self._store()
        self._survivors.keep(cut)
        self._objective = self._objective.keep(cut.victims, cut.restarts)
        places = torch.arange(working.numel(), device=working.device).reshape(working.shape)
        self._lines.keep(cut.take(places).flatten())
        self._plateau.keep(cut)
        self._steps = cut.take(self._steps)
        self._shape = torch.Size((*self._steps.shape, *self._shape[2:]))
        return True

    def smallest_distance(self) -> float:
        """Smallest distance of all candidates, those that left included."""
        return min(float(self._found.distances.min()), float(self._lines.best_distances.min()))

    def found(self) -> Matched:
        """What was found until now, in the original order."""
        self._store()
        late = self._course.late_falls(self._found.distances, self._found.iterations)
        return replace(self._found, starts=self._course.starts, late_falls=late, cut=self.cut)

    def _measure(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and distances, (c,), and the gradient of the losses, (c, n)."""
        x = flat.reshape(self._shape).clone().requires_grad_(True)
        distances = self._objective.distances(x)
        losses = distances + self._objective.priors(x)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        return precise(losses.detach().flatten()), precise(distances.detach().flatten()), gradient.reshape(flat.shape)

    def _store(self) -> None:
        for values, into in (
            (self._lines.best.reshape(self._shape), self._found.candidates),
            (self._axes(self._lines.best_distances), self._found.distances),
            (self._axes(self._lines.diverged), self._found.diverged),
            (self._steps, self._found.iterations),
        ):
            self._survivors.put(values, into)

    def _axes(self, values: Tensor) -> Tensor:
        return values.reshape(self._shape[:2])


class _Lines:
    """One line search for each of c candidates with n numbers; positions and gradients are (c, n), the rest (c,)."""

    def __init__(
        self, x: Tensor, value: Tensor, distance: Tensor, gradient: Tensor, history: int, first_trial: float
    ) -> None:
        self._x, self._value, self._gradient = x, value, gradient
        self._first_trial = first_trial
        self._history = CurvaturePairs(x, history)
        finite = value.isfinite() & gradient.isfinite().all(dim=1)
        self.best, self.best_values = x, value.masked_fill(~value.isfinite(), torch.inf)
        self.best_distances = distance.masked_fill(~value.isfinite(), torch.inf)
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

    def learn(self, value: Tensor, distance: Tensor, gradient: Tensor) -> None:
        """Take in what was measured at the trial points: accept a step, or move the brackets, or give up."""
        improved = self.active & (value < self.best_values)
        self.best = torch.where(improved.unsqueeze(1), self._tried, self.best)
        self.best_values = torch.where(improved, value, self.best_values)
        self.best_distances = torch.where(improved, distance, self.best_distances)

        finite = value.isfinite() & gradient.isfinite().all(dim=1)
        gains = finite & (value <= self._value + SUFFICIENT_DECREASE * self._step * self._slope)
        level = gains & (row_products(gradient, self._direction) >= CURVATURE * self._slope)
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

    def stop(self, which: Tensor) -> None:
        """Finish some candidates where they are."""
        self.active = self.active & ~which

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the candidates, by their places."""
        self._history.keep(rows)
        for name, values in list(vars(self).items()):
            if isinstance(values, Tensor):
                setattr(self, name, values[rows])

    def _freeze(self, which: Tensor, finite: Tensor) -> None:
        self.diverged = self.diverged | (which & ~finite)
        self.active = self.active & ~which

    def _turn(self, which: Tensor) -> None:
        """New lines for some candidates."""
        if not bool(which.any()):
            return
        direction = self._history.direction(self._gradient)
        slope = row_products(direction, self._gradient)
        lost = which & ~(slope < 0)  # by rounding only: exact curvature pairs give a descent direction
        self._history.clear(lost)
        direction = torch.where(lost.unsqueeze(1), -self._gradient, direction)
        slope = torch.where(lost, -row_products(self._gradient, self._gradient), slope)
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
