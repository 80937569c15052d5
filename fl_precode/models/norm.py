"""The normalisation layers between which a convolutional model chooses."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

Norm = Literal["batch", "group", "none"]

_GROUPS = 8


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """A normalisation of (batch, channels, height, width) with a scale and a shift for each channel.

    Batch normalisation (Ioffe and Szegedy, ICML 2015) mixes the images of a batch in training and keeps running
    statistics in buffers. Group normalisation (Wu and He, ECCV 2018) does neither. It has 8 groups, or the largest
    power of two that divides the channels when 8 does not; of 4 to 32 groups its authors found none much better
    (table 3).

    Args:
        norm: ``none`` gives an Identity, without parameters.
        channels: Channels of the images that enter, 1 or more.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    return nn.Identity()
