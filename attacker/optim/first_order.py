"""First-order search for inputs whose gradient matches the observed one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from attacker.optim.active_set import Survivors
from attacker.optim.adam import Adam
from attacker.optim.deadline import time_is_up
from attacker.optim.early_stopping import Plateau, halving_rungs, worse_half
from attacker.optim.loss_history import Course
from attacker.optim.lr_schedule import Schedule
from attacker.optim.problem import Objective
from attacker.optim.random_streams import Draws
from attacker.optim.result import Best, Matched
from attacker.optim.setting_ranges import check_positive

_REPORTS = 100
# Leaving out candidates copies all that is known about the others; every tenth iteration that is no work to speak of.
_LOOK_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Companions:
    """Entries of a candidate that are searched beside its images, by plain Adam: never by the sign alone.

    Attributes:
        first: They stand from here on in the last axis of candidates (victims, restarts, entries).
        learning_rate: Their initial step; it falls with the schedule as that of the images does.
    """

    first: int
    learning_rate: float


@dataclass(frozen=True)
class SoftSign:
    """The sign of the gradient g, softened to tanh(g / softness).

    About the sign for entries larger than the softness, about the gradient itself for smaller ones.

    Attributes:
        softness: In units of the gradient, positive.

    Raises:
        ValueError: If it is not positive and finite.
    """

    softness: float

    def __post_init__(self) -> None:
        check_positive("softness", self.softness)

    def __call__(self, gradient: Tensor) -> Tensor:
        """What Adam receives in place of the gradient."""
        return (gradient / self.softness).tanh()


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Adam on all candidates at once, each with a loss and a clock of its own.

    Candidates that are finished leave the batch. They finish with their iterations, when their victim is solved, on the
    last plateau, among the worse half of their victim's restarts, or when their gradient is no longer finite.

    Attributes:
        iterations: Optimiser steps, 1 or more.
        learning_rate: Initial step, in the model's normalised scale.
        signed: Whether Adam receives the sign of the gradient instead of the gradient, or a `SoftSign` of it.
        schedule: How the learning rate falls: "step", "constant", "linear" or "cosine"; see `Schedule`.
        warmup: Iterations over which the learning rate rises to the schedule.
        langevin: Standard deviation of the noise that is added to every step, as a multiple of the learning rate.
        plateau: Iterations in which a candidate's best loss has to fall by 1 % (`PLATEAU_GAIN`). Where it does not, the
            candidate goes on with the next fall of the learning rate at once, and is finished when there is none
            left. 0 waits for ever.
        iterate: What a candidate gives that came to the end of its schedule: the "last" iterate, as reference codes do,
            or the one with the smallest loss that was measured, "best". Any other gives the best.
    """

    iterations: int
    learning_rate: float
    signed: bool | SoftSign = True
    schedule: str = "step"
    warmup: int = 0
    langevin: float = 0.0
    plateau: int = 0
    iterate: str = "last"

    def run(
        self,
        objective: Objective,
        start: Tensor,
        *,
        project: Callable[[Tensor], Tensor] | None = None,
        draws: Draws | None = None,
        companions: Companions | None = None,
        stop_below: float = 0.0,
        halving: int = 0,
        progress: Callable[[float, float | None], None] | None = None,
    ) -> Matched:
        """Descend from ``start``, (victims, restarts, batch, channels, height, width), normalised.

        Args:
            objective: What to minimise. It may draw fresh noise at each call.
            start: First iterate, measured as well.
            project: Applied after each step, for example on the box of valid images; None for no bounds.
            draws: Generators of all candidates, for Langevin noise.
            companions: Entries of ``start``, then (victims, restarts, entries), that are no part of the images.
            stop_below: A victim is solved when one of its restarts has a distance below this; 0 never.
            halving: How often the worse half of each victim's restarts is dropped, by distance; see `halving_rungs`.
            progress: Receives the share done and the smallest distance so far, about 100 times.

        Returns:
            One iterate of each candidate, as `iterate` says, those that left included; it was measured. Where a
            deadline ends the search (`attacker.optim.deadline`), the best until then.

        Raises:
            ValueError: If there is Langevin noise to draw and no ``draws``.
        """
        if self.langevin and draws is None:
            raise ValueError("expected draws for the Langevin noise, got None; pass the generators of the candidates")
        limits = _Limits(stop_below, halving_rungs(self.iterations, halving))
        search = _Search(self, objective, start, project, draws, companions, limits)
        every = max(1, self.iterations // _REPORTS)
        for iteration in range(self.iterations):
            gradient = search.gradient()
            search.keep_best(iteration)
            search.finish(gradient, iteration)
            search.step(gradient)
            search.project()
            if iteration % _LOOK_EVERY == 0 and not search.shrink():
                break
            if progress is not None and iteration % every == 0:
                progress(iteration / self.iterations, search.smallest_distance())
            if iteration + 1 < self.iterations and time_is_up(search.victims):
                search.cut(iteration + 1)
                break
        else:
            search.measure_last()
        matched = search.found()
        if progress is not None:
            progress(1.0, float(matched.distances.min()))
        return matched


class _Limits(NamedTuple):
    """When candidates are finished before their iterations are.

    Attributes:
        stop_below: Distance below which a victim is solved; 0 for none.
        rungs: Iterations after which the worse half of each victim's restarts is dropped.
    """

    stop_below: float
    rungs: list[int]


class _Search:
    """The state of a descent: everything has the axes (victims, restarts) of the candidates still in the batch."""

    def __init__(
        self,
        settings: Descent,
        objective: Objective,
        start: Tensor,
        project: Callable[[Tensor], Tensor] | None,
        draws: Draws | None,
        companions: Companions | None,
        limits: _Limits,
    ) -> None:
        self._companions, self._limits = companions, limits
        self._settings, self._objective, self._project, self._draws = settings, objective, project, draws
        self._schedule = Schedule(shape=settings.schedule, iterations=settings.iterations, warmup=settings.warmup)
        self._x = start.detach().clone()
        self._adam = Adam(self._x)
        self._best = Best.of(self._x)
        self._plateau = Plateau(self._best.losses, settings.plateau)
        self._finished = torch.zeros(start.shape[:2], dtype=torch.bool, device=start.device)
        self._diverged = self._finished
        self._clock = torch.zeros_like(self._finished, dtype=torch.long)
        self._distances = self._losses = self._best.losses
        self._stage, self._steps = self._schedule.stage(self._clock), self._clock
        self._survivors = Survivors(*start.shape[:2])
        self._course = Course(self._best.distances, settings.iterations)
        self._cut = False
        self._found = Matched(
            candidates=start.detach().clone(),
            distances=self._best.distances.clone(),
            diverged=self._finished.clone(),
            iterations=self._steps.clone(),
            starts=self._best.distances,
            late_falls=self._best.distances,
        )

    def gradient(self) -> Tensor:
        """Measure the iterate, and the gradient of its loss."""
        x = self._x.requires_grad_(True)
        distances = self._objective.distances(x)
        losses = distances + self._objective.priors(x)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
        self._x = x.detach()
        self._distances, self._losses = distances.detach(), losses.detach()
        return gradient

    def keep_best(self, iteration: int) -> None:
        """Keep what was just measured where it is the best so far."""
        self._best.consider(self._x, self._distances, self._losses, ~self._finished)
        self._course.note(iteration, self._best.distances, self._survivors)

    def finish(self, gradient: Tensor, iteration: int) -> None:
        """See who is finished: lost, on the last plateau, solved, or among the worse half."""
        lost = ~gradient.isfinite().flatten(2).all(dim=2)  # the moments of Adam never recover from that
        self._diverged = self._diverged | (lost & ~self._finished)
        self._finish(lost, iteration + 1)
        self._stop(iteration)

    def _stop(self, iteration: int) -> None:
        if self._settings.plateau:
            stage = self._schedule.stage(self._clock)
            flat = self._plateau.reached(self._best.losses, stage != self._stage)
            self._stage = stage
            self._clock = torch.where(flat, self._schedule.next_stage(self._clock), self._clock)
            self._end(self._clock >= self._settings.iterations, iteration)
        if self._limits.stop_below:
            solved = (self._best.distances < self._limits.stop_below).any(dim=1, keepdim=True)
            self._finish(solved.expand_as(self._finished), iteration)
        if iteration in self._limits.rungs:
            self._finish(worse_half(self._best.distances, self._finished), iteration)

    def _end(self, which: Tensor, steps: int) -> None:
        """Candidates at the end of their schedule, whose iterate was just measured, are finished."""
        if self._settings.iterate == "last":
            ended = which & ~self._finished
            self._best.forget(ended & self._distances.isfinite())
            self._best.consider(self._x, self._distances, self._losses, ended)
        self._finish(which, steps)

    def _finish(self, which: Tensor, steps: int) -> None:
        self._steps = torch.where(which & ~self._finished, steps, self._steps)
        self._finished = self._finished | which

    def step(self, gradient: Tensor) -> None:
        """Move all candidates by Adam's step at the rate of their own clocks, with noise where there is some."""
        settings, axes = self._settings, (*self._x.shape[:2], *[1] * (self._x.dim() - 2))
        rate = (settings.learning_rate * self._schedule.share(self._clock)).to(gradient.dtype).reshape(axes)
        step = self._adam.direction(self._shaped(gradient))
        if self._companions is not None:
            first, ratio = self._companions.first, self._companions.learning_rate / settings.learning_rate
            step = torch.cat([step[..., :first], ratio * step[..., first:]], dim=-1)
        if settings.langevin:
            assert self._draws is not None
            step = step + settings.langevin * self._draws.normal(*self._x.shape[2:], like=self._x)
        x = self._x - rate * step
        # What has diverged is marked, so that no other candidate reckons with it.
        self._x = x.masked_fill(self._diverged.reshape(axes), torch.nan)
        self._clock = self._clock + 1

    def project(self) -> None:
        """Move candidates within their bounds, where there are some."""
        if self._project is not None:
            self._x = self._project(self._x)

    def _shaped(self, gradient: Tensor) -> Tensor:
        """What Adam receives in place of the gradient."""
        signed = self._settings.signed
        if not signed:
            return gradient
        shaped = signed(gradient) if isinstance(signed, SoftSign) else gradient.sign()
        if self._companions is not None:
            first = self._companions.first
            shaped = torch.cat([shaped[..., :first], gradient[..., first:]], dim=-1)
        return shaped

    def measure_last(self) -> None:
        """Measure the last iterate, without a gradient."""
        with torch.no_grad():
            self._distances = self._objective.distances(self._x)
            self._losses = self._distances + self._objective.priors(self._x)
        self._best.consider(self._x, self._distances, self._losses, ~self._finished)
        self._course.note(self._settings.iterations, self._best.distances, self._survivors)
        self._diverged = self._diverged | (~self._distances.isfinite() & ~self._finished)
        self._end(torch.ones_like(self._finished), self._settings.iterations)

    def shrink(self) -> bool:
        """Let finished candidates leave; whether any is left to work on."""
        if bool(self._finished.all()):
            return False
        cut = self._survivors.plan(self._finished)
        if cut is None:
            return True
        self._store()
        self._survivors.keep(cut)
        self._objective = self._objective.keep(cut.victims, cut.restarts)
        self._draws = None if self._draws is None else self._draws.keep(cut.victims, cut.restarts)
        for part in (self._adam, self._best, self._plateau):
            part.keep(cut)
        self._x, self._clock, self._stage = map(cut.take, (self._x, self._clock, self._stage))
        self._finished, self._diverged, self._steps = map(cut.take, (self._finished, self._diverged, self._steps))
        return True

    @property
    def victims(self) -> int:
        """Those that are still searched for."""
        return len(self._x)

    def cut(self, steps: int) -> None:
        """End the search after this number of steps, with the best iterates until then."""
        self._cut = True
        self._finish(torch.ones_like(self._finished), steps)

    def smallest_distance(self) -> float:
        """Smallest distance of all candidates, those that left included."""
        return min(float(self._found.distances.min()), float(self._best.distances.min()))

    def found(self) -> Matched:
        """What was found until now, in the original order."""
        self._store()
        late = self._course.late_falls(self._found.distances, self._found.iterations)
        return replace(self._found, starts=self._course.starts, late_falls=late, cut=self._cut)

    def _store(self) -> None:
        for values, into in (
            (self._best.iterates, self._found.candidates),
            (self._best.distances, self._found.distances),
            (self._diverged, self._found.diverged),
            (self._steps, self._found.iterations),
        ):
            self._survivors.put(values, into)
