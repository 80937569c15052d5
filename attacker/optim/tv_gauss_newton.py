"""Smoothest image that gives the update: total variation fills what the equations leave open."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attacker.optim.deadline import time_is_up
from attacker.optim.gauss_newton import Refined, refine

EDGE = 0.005
"""Differences of neighbouring pixels below it count as none, on the [0, 1] scale."""
FIRST, LAST = 2.5, 2.5e4
"""Weight of the equations against total variation, at the first and at the last step."""


def refine_smoothly(
    residual: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    inner: int,
    project: Callable[[Tensor], Tensor],
    pixels: Callable[[Tensor], Tensor],
) -> Refined:
    """Minimise ``TV(x) + weight |r(x)|^2``, the first a mean over all values, the weight rising from `FIRST` to `LAST`.

    Total variation couples directions and colours, ``sum sqrt(sum over them d^2 + EDGE^2)``, and becomes a weighted
    square at each step (iteratively reweighted least squares), so that `refine` solves for both at once. In directions
    that the equations determine they win in the end; in those that they leave open the prior alone decides.

    Args:
        residual: (v, channels, height, width) to (v, rows), of relative size.
        start: (v, channels, height, width).
        steps: Steps of which each solves one least-squares problem.
        inner: Iterations of each.
        project: Onto valid images.
        pixels: To the [0, 1] scale, affine.
    """
    x, step = start, 0
    for step in range(steps):
        weight = (FIRST * (LAST / FIRST) ** (step / max(1, steps - 1))) ** 0.5
        edges = _edge_weights(pixels(x))

        def both(x: Tensor, weight: float = weight, edges: Tensor = edges) -> Tensor:
            smooth = (differences(pixels(x)) * edges).flatten(1) / x[0].numel() ** 0.5
            return torch.cat([weight * residual(x), smooth], dim=1)

        x = refine(both, x, steps=1, inner=inner, project=project).x
        if step + 1 < steps and time_is_up(len(x)):
            break
    return Refined(x=x, values=residual(x).detach().square().sum(dim=1), steps=step + 1)


def differences(x: Tensor) -> Tensor:
    """To the right and lower neighbour, 0 at the edges: (v, c, h, w) to (v, 2, c, h, w)."""
    right = F.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1))
    down = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    return torch.stack([right, down], dim=1)


def _edge_weights(x: Tensor) -> Tensor:
    """(v, 1, 1, h, w), by which squares of differences become their total variation at x."""
    length = differences(x.detach()).square().sum(dim=(1, 2), keepdim=True)
    return (length + EDGE**2).pow(-0.25)
