"""Learning rates over the iterations of a descent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Fractions of the iterations after which the learning rate falls (reference code of Inverting Gradients).
MILESTONES = (3 / 8, 5 / 8, 7 / 8)
DECAY = 0.1
SHAPES = ("step", "constant", "linear", "cosine")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The share of the learning rate at each point of time.

    Every candidate has a clock of its own: one that is on a plateau may set it forward.

    Attributes:
        shape: "step": times 0.1 at 3/8, 5/8 and 7/8 of the iterations; "constant"; "linear" or "cosine": falling to 0.
        iterations: The whole time, 1 or more.
        warmup: Iterations over which the rate rises linearly to the shape, less than ``iterations``.
    """

    shape: str = "step"
    iterations: int
    warmup: int = 0

    def share(self, clock: Tensor) -> Tensor:
        """The factor of the learning rate in the step that follows ``clock`` steps, in float64."""
        time = clock.double()
        if self.shape == "step":
            share = DECAY ** self.stage(clock).double()
        elif self.shape == "linear":
            share = 1 - time / self.iterations
        elif self.shape == "cosine":
            share = (1 + torch.cos(math.pi * time / self.iterations)) / 2
        else:
            share = torch.ones_like(time)
        return share * ((time + 1) / self.warmup).clamp(max=1) if self.warmup else share

    def stage(self, clock: Tensor) -> Tensor:
        """How often the rate has fallen in steps, at each point of time."""
        return sum((clock >= milestone for milestone in self._milestones()), torch.zeros_like(clock))

    def next_stage(self, clock: Tensor) -> Tensor:
        """The time at which the rate falls next, or the end where it falls smoothly or no more."""
        times = torch.tensor([*self._milestones(), self.iterations], device=clock.device)
        return times[self.stage(clock)]

    def _milestones(self) -> list[int]:
        return [int(m * self.iterations) for m in MILESTONES] if self.shape == "step" else []
