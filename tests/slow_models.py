"""Real models that take their time: each pass sleeps, or one never returns."""

from __future__ import annotations

import os
import time

from torch import Tensor, nn

CALLS_BEFORE_IT_HANGS = [int(os.environ.get("SLOW_MODEL_HANGS_AFTER", 10**9))]
"""Passes that `Hanging` makes before one does not return; a test sets it, or the environment in other processes."""


class Slow(nn.Module):
    """A small network whose every pass takes a while."""

    def __init__(self, pixels: int, classes: int, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), nn.Sigmoid(), nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.layers(x)


class Hanging(Slow):
    """The same, until a pass through which images are searched goes on for ever."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS_BEFORE_IT_HANGS[0] -= x.requires_grad
        while x.requires_grad and CALLS_BEFORE_IT_HANGS[0] < 0:
            time.sleep(0.01)
        return super().forward(x)


def slow(inputs, seconds: float = 0.1) -> nn.Module:
    return Slow(inputs.channels * inputs.height * inputs.width, inputs.classes, seconds)


def hanging(inputs) -> nn.Module:
    return Hanging(inputs.channels * inputs.height * inputs.width, inputs.classes, 0.0)
