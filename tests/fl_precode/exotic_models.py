"""Factories for `package.module:factory`, good and bad, that the tests of fl_precode.models name."""

from __future__ import annotations

import torch
from torch import nn


def with_spec(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.height * spec.width, spec.classes))


def with_optional_inputs(inputs=None):
    return with_spec(inputs)


class Plain(nn.Module):
    """Takes no spec; its first argument has a default that is no spec."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.drop(x.mean((2, 3))))

    @classmethod
    def quiet(cls):
        return cls().eval()


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def normalised():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def for_one_channel():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))


def no_module():
    return {"not": "a module"}


def raising(spec):
    raise RuntimeError("no weights today")


def greedy(spec, depth):
    return nn.Identity()


def keyword_only(*, depth):
    return nn.Identity()


class TwoHeads(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), torch.zeros(1)


made = nn.Linear(2, 2)
number = 3
