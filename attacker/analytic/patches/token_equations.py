"""Patches from ``G = D' X``: the patch layer's gradient, the gradients of its outputs, and how much they determine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_LEAST_FREEDOM: Final = 8
"""Equations beyond the unknowns that are enough to measure noise, and to tell one image from several."""

_SMALL: Final = 1e-3
"""Relative size of directions that may be noise alone."""

_TOO_LOUD: Final = 100.0
"""Such a direction whose patches would have so many times the usual mean square is noise divided by its size."""

_ROUNDING: Final = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
"""Relative rounding error of a number."""


@dataclass(frozen=True, kw_only=True)
class SolvedPatches:
    """What the equations say of the patches.

    Attributes:
        values: (patches, numbers), float64.
        rank: Directions of the patches that stand above the noise.
        noise: What each equation is off by, over the root mean square of their right sides.
        residual: ``|G - D' X| / |G|``: whether the update confirms the patches.
        unexplained: Share ``|G - U U' G| / |G|`` that no patches explain, U the column space of D'; None where the
            equations are no more than the unknowns, so that anything is explained.
    """

    values: Tensor
    rank: int
    noise: float
    residual: float
    unexplained: float | None


def smooth_covariance(places: Tensor, length: float) -> Tensor:
    """How alike patches are expected to be, (patches, patches): all share a mean, near ones more.

    Args:
        places: (patches, axes), where they lie.
        length: Patches over which likeness falls by a factor of e, above 0.
    """
    distances = torch.cdist(places, places)
    apart = distances[distances > 0]
    spacing = apart.min() if len(apart) else distances.new_ones(())
    return torch.exp(-distances / (spacing * length)) + 1


def solve_patches(tokens: Tensor, weight: Tensor, covariance: Tensor | None = None) -> SolvedPatches:
    """The patches that are most likely: exact where the equations determine them, else the smallest or smoothest.

    Every equation is taken to be off by noise of the same size, measured by what no patches explain; where patches
    would explain anything, by directions that would give absurdly large ones; at least by the rounding of numbers.
    Directions of D that the noise exceeds then count as little as they say. Without noise the pseudo-inverse remains.

    Args:
        tokens: D, (patches, width), the gradient at each output of the patch layer.
        weight: G, (width, numbers), the gradient of the layer's weight.
        covariance: (patches, patches), how alike patches are expected to be; None for not at all.
    """
    system, target = tokens.double().T, weight.double()
    mixing = None if covariance is None else _factor(covariance.to(system))
    left, sizes, right = torch.linalg.svd(system if mixing is None else system @ mixing, full_matrices=False)
    parts = left.T @ target
    outside, freedom = target - left @ parts, len(target) - len(sizes)
    powers = parts.square().mean(1)
    sizes_squared = sizes.square()
    usable = sizes > 1e-15 * max(system.shape) * sizes[0]
    usual = (powers / sizes_squared)[: max(1, int(usable.sum()) // 2)].mean()
    loud = usable & (sizes < _SMALL * sizes[0]) & (powers > _TOO_LOUD * usual * sizes_squared)
    variance = _ROUNDING[weight.dtype] ** 2 * target.square().mean()
    if freedom >= _LEAST_FREEDOM:
        variance = torch.maximum(variance, outside.square().sum() / (freedom * target.shape[1]))
    elif bool(loud.any()):
        variance = torch.maximum(variance, powers[loud].median())
    penalty = variance / usual
    solved = (sizes * usable / (sizes_squared + penalty))[:, None] * parts
    values = right.T @ solved
    values = values if mixing is None else mixing @ values
    size = target.norm()
    return SolvedPatches(
        values=values,
        rank=int((usable & (sizes_squared > penalty)).sum()),
        noise=float((variance / target.square().mean()).sqrt()),
        residual=float((target - system @ values).norm() / size),
        unexplained=float(outside.norm() / size) if freedom >= _LEAST_FREEDOM else None,
    )


def _factor(covariance: Tensor) -> Tensor:
    """L with ``L L' = covariance``."""
    values, vectors = torch.linalg.eigh(covariance)
    factor: Tensor = vectors * values.clamp(min=0).sqrt()
    return factor
