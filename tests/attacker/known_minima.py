"""Losses with known minima, for the searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from attacker.objectives.image_priors import TotalVariation
from attacker.optim.active_set import take
from attacker.optim.problem import Objective

GOAL = 3.0


class Plain(Objective):
    """One function for all candidates; notes what it measured. The function must treat all candidates alike."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, total_variation: float = 0.0) -> None:
        self._function, self._weight = function, total_variation
        self.seen: list[tuple[Tensor, Tensor]] = []

    def distances(self, x: Tensor) -> Tensor:
        values = self._function(x)
        self.seen.append((x.detach().clone(), values.detach().clone()))
        return values

    def priors(self, x: Tensor) -> Tensor:
        return self._weight * TotalVariation()(x) if self._weight else super().priors(x)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        return self


class Bowl(Objective):
    """Mean squared distance to a goal of each candidate, GOAL by default, as steep as its slope says.

    Notes every candidate that it measured by its original place, counts how often each was measured, and lets some
    restarts turn NaN after some calls.
    """

    def __init__(
        self,
        *,
        goals: Tensor | None = None,
        slopes: Tensor | None = None,
        broken: tuple[int, ...] = (),
        after: int = 0,
        total_variation: float = 0.0,
    ) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []
        self._goals, self._slopes = goals, slopes
        self._broken, self._after, self._weight = list(broken), after, total_variation
        self._places: Tensor | None = None
        self.sizes: list[tuple[int, int]] = []

    def distances(self, x: Tensor) -> Tensor:
        goals = GOAL if self._goals is None else self._goals.reshape(*self._goals.shape, *[1] * (x.dim() - 2))
        values = (x - goals).square().flatten(2).mean(dim=2)
        if self._slopes is not None:
            values = values * self._slopes
        if len(self.seen) >= self._after and self._broken:
            columns = torch.arange(x.shape[1]).expand(x.shape[:2]) if self._places is None else self._places
            factor = torch.ones_like(values.detach())
            factor[torch.isin(columns, torch.tensor(self._broken))] = torch.nan
            values = values * factor
        self.seen.append((x.detach().clone(), values.detach().clone()))
        self.sizes.append((x.shape[0], x.shape[1]))
        return values

    def priors(self, x: Tensor) -> Tensor:
        return self._weight * TotalVariation()(x) if self._weight else super().priors(x)

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        if self._places is None:
            size = self.sizes[-1]
            self._places = torch.arange(size[1]).expand(size)
        self._places = take(self._places, victims, restarts)
        if self._goals is not None:
            self._goals = take(self._goals, victims, restarts)
        if self._slopes is not None:
            self._slopes = take(self._slopes, victims, restarts)
        return self


class Staying(Objective):
    """Another objective whose finished candidates are measured to the end: the slow version that must agree."""

    def __init__(self, inner: Objective, axes: tuple[int, int]) -> None:
        self._inner, self._axes = inner, axes
        self._rows = torch.arange(axes[0]).unsqueeze(1).expand(axes)
        self._columns = torch.arange(axes[1]).expand(axes)

    def distances(self, x: Tensor) -> Tensor:
        whole = x.new_zeros(*self._axes, *x.shape[2:])
        whole = whole.index_put((self._rows, self._columns), x)
        return self._inner.distances(whole)[self._rows, self._columns]

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        self._rows, self._columns = (take(values, victims, restarts) for values in (self._rows, self._columns))
        return self
