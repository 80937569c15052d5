"""Distances that look at single elements of the gradient: sums of absolute differences, and kept elements only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from attacker.gradients.base import Products
from attacker.gradients.distances import Differences, Elements
from attacker.optim.double_precision import precise


def elementwise_differences(
    formed: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    elements: Elements,
    units: Mapping[str, Tensor] | None = None,
) -> Differences:
    """Compare formed gradients, or updates, with the observed ones element by element.

    With ``kept`` the square is ``|g o m|^2`` for the mask ``m = [g* != 0]``: ``<g o m, g*> = <g, g*>``, so that cosine
    and squared distance of these products are those over the elements that a pruned update kept. What is zero for
    another reason, such as a unit that was not active, is left out with the rest.

    Args:
        formed: (victims, restarts, ...) by parameter name.
        targets: (victims, ...) by parameter name, those that count.
        elements: Which elements count, and how.
        units: (victims,) by parameter name, what both gradients are divided by; None for 1.
    """
    pairs = []
    for name, stacked in targets.items():
        g = formed[name].reshape(*formed[name].shape[:2], -1)  # a parameter may have no dimensions
        target = stacked.reshape(len(stacked), -1)
        if units is not None:
            unit = units[name].to(target).unsqueeze(1)
            g, target = g / unit.unsqueeze(2), target / unit
        pairs.append((g * (target != 0).unsqueeze(1) if elements.kept else g, target))
    square = _total(precise(g.square()) for g, _ in pairs)
    target_square = _total(precise(target.square()) for _, target in pairs)
    if elements.aligned:
        tiny = torch.finfo(square.dtype).tiny
        factor = target_square.sqrt().unsqueeze(1) * square.clamp_min(tiny).rsqrt()
        pairs = [(g * factor.to(g).unsqueeze(2), target) for g, target in pairs]
        square = square * factor.square()
    inner = _total(precise(g * target.unsqueeze(1)) for g, target in pairs)
    absolute = _total(precise((g - target.unsqueeze(1)).abs()) for g, target in pairs)
    magnitude = _total(precise(target.abs()) for _, target in pairs)
    differences = Differences.of(Products(inner=inner, square=square, target=target_square), absolute, magnitude)
    if elements.signs:
        agreeing = _total(precise(g * target.sign().unsqueeze(1)) for g, target in pairs)
        differences.agreement = agreeing / _total(precise(g.abs()) for g, _ in pairs).clamp_min(
            torch.finfo(square.dtype).tiny
        )
    return differences


def stacked_units(units: Sequence[Mapping[str, float]], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Units of every victim, (victims,) by name of each target; 1 for names that have none."""
    return {
        name: torch.tensor(
            [victim_units.get(name, 1.0) for victim_units in units], dtype=target.dtype, device=target.device
        )
        for name, target in targets.items()
    }


def _total(parts: Iterable[Tensor]) -> Tensor:
    """Sum over the last axis and over all parts."""
    return torch.stack([part.sum(-1) for part in parts]).sum(0)
