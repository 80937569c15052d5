"""Defences as somebody else would write them, named by the place of their class."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fl_precode.defences.registry import GradientDefence


@dataclass(frozen=True)
class Halved(GradientDefence):
    """Sends a part of every gradient."""

    part: float = 0.5

    def __call__(self, gradients, *, generator=None, model=None, batch=None):
        return {name: self.part * value for name, value in gradients.items()}


@dataclass(frozen=True)
class Misshapen(GradientDefence):
    """Sends other shapes."""

    def __call__(self, gradients, *, generator=None, model=None, batch=None):
        return {name: torch.zeros(3) for name in gradients}
