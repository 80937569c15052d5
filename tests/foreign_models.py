"""Models of other people's making, for `package.module:factory`."""

from __future__ import annotations

from torch import nn


def convolutions_only(inputs):
    """A classifier without any Linear layer."""
    return nn.Sequential(nn.Conv2d(inputs.channels, inputs.classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def three_channels():
    """A model for colour images only."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
