"""Average pooling as a linear map, and its transpose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacker.analytic.layer_chain import Step

POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def pool_back(step: Step, rows: Tensor) -> Tensor:
    """The transpose of a pooling layer."""
    zero = rows.new_zeros(len(rows), *step.input_shape)
    pulled: Tensor = torch.func.vjp(step.module, zero)[1](rows)[0]
    return pulled


def through_pools(pools: Sequence[Step], x: Tensor) -> Tensor:
    """Values through several pooling layers, in order."""
    for pool in pools:
        x = pool.module(x)
    return x


def back_through_pools(pools: Sequence[Step], rows: Tensor) -> Tensor:
    """The transpose of `through_pools`."""
    for pool in reversed(pools):
        rows = pool_back(pool, rows)
    return rows
