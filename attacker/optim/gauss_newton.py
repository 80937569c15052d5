"""Least squares on images: the gradient that they give is made to agree with the observed one, many at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.optim.deadline import time_is_up
from attacker.optim.lsmr import solve

_PROBE = 1e-3
"""Of a move down the slope that shows which values stand at a bound; any small one will do."""
_LENGTHS = (1.0, 0.5, 0.1)
"""Of a step that are tried."""


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What `refine` found.

    Attributes:
        x: (v, ...), the best measured iterates.
        values: (v,), ``|r(x)|^2`` there.
        steps: Gauss-Newton steps made.
    """

    x: Tensor
    values: Tensor
    steps: int


def refine(
    residual: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    inner: int,
    project: Callable[[Tensor], Tensor],
    gain: float = 0.01,
) -> Refined:
    """Minimise ``|r(x)|^2`` by Gauss-Newton, each step by LSMR with products of the Jacobian.

    Near the solution one step does what thousands of gradient steps do, because no direction is slow. An inner solve
    that is stopped early leaves directions alone that the equations hardly see: the usual regularisation.

    Args:
        residual: (v, ...) to (v, rows), twice differentiable; a victim's row must not depend on the others.
        start: (v, ...).
        steps: At most.
        inner: Iterations of each inner solve, at most.
        project: Onto valid images, after each step.
        gain: A victim goes on while a step lowers its value by this share.
    """
    x, best = start, residual(start).detach().square().sum(dim=1)
    done = 0
    while done < steps:
        move = _step(residual, x, inner, project)
        done += 1
        before = best
        for length in _LENGTHS:
            tried = project(x + length * move)
            values = residual(tried).detach().square().sum(dim=1)
            better = (values < best).reshape(-1, *[1] * (x.dim() - 1))
            x, best = torch.where(better, tried, x), torch.where(values < best, values, best)
        if bool((best > (1 - gain) * before).all()) or (done < steps and time_is_up(len(x))):
            break
    return Refined(x=x, values=best, steps=done)


def _step(residual: Callable[[Tensor], Tensor], x: Tensor, inner: int, project: Callable[[Tensor], Tensor]) -> Tensor:
    """The Gauss-Newton step, (v, ...).

    Values at a bound that descent would push beyond it stay where they are, and the others are solved for (projected
    Newton, Bertsekas, SIAM J. Control Optim. 1982): a step that is cut off at the bounds afterwards need not descend.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_(True)
        rows = residual(point)
        dual = torch.zeros_like(rows, requires_grad=True)
        (pulled,) = torch.autograd.grad(rows, point, dual, create_graph=True)

    def transposed(y: Tensor) -> Tensor:
        return torch.autograd.grad(rows, point, y, retain_graph=True)[0].flatten(1)

    slope = transposed(rows.detach())
    probe = _PROBE * slope / slope.abs().amax(dim=1, keepdim=True).clamp_min(1e-300)
    free = ((slope == 0) | (project(x - probe.reshape(x.shape)) != x).flatten(1)).to(x)

    def apply(v: Tensor) -> Tensor:
        return torch.autograd.grad(pulled, dual, (v * free).reshape(pulled.shape), retain_graph=True)[0]

    solution = solve(apply, lambda y: transposed(y) * free, -rows.detach(), tolerance=1e-10, iterations=inner)
    return solution.x.reshape(x.shape)
