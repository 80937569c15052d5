"""Minimum-norm least squares for many systems at once, of which only products with vectors are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.optim.deadline import time_is_up

_LOOK_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What `solve` found.

    Attributes:
        x: (v, unknowns), the minimum-norm solution, as far as it was reached.
        residuals: (v,), ``|A x - b| / |b|``; 0 where b is 0.
        iterations: Until all were done or the limit was reached.
        converged: (v,), whether the normal equations hold to the tolerance.
    """

    x: Tensor
    residuals: Tensor
    iterations: int
    converged: Tensor


def solve(
    apply: Callable[[Tensor], Tensor],
    transposed: Callable[[Tensor], Tensor],
    rows: Tensor,
    *,
    tolerance: float = 1e-13,
    iterations: int = 4_000,
) -> Solution:
    """Minimise ``|A x - b|`` for v systems, from x = 0, by LSMR (Fong, Saunders, SIAM J. Sci. Comput. 2011).

    It is mathematically MINRES on the normal equations, without the loss of digits of forming them. From zero, every
    iterate lies in the row space: where columns depend on each other, the solution of minimum norm is reached.
    A system is done when ``|A' r| <= tolerance |A| |r|`` or ``|r| <= tolerance |b|``, their test 1 and 2, measured with
    the true residual; systems that are done stand still.

    Args:
        apply: A x: (v, unknowns) to (v, rows).
        transposed: A' y: (v, rows) to (v, unknowns).
        rows: b, (v, rows); float64 for the accuracy that the tolerance asks for.
        tolerance: Relative.
        iterations: At most.
    """
    u, beta = _unit(rows)
    v, alpha = _unit(transposed(u))
    x, h, hbar = torch.zeros_like(v), v, torch.zeros_like(v)
    zetabar, alphabar = alpha * beta, alpha
    rho = rhobar = cbar = torch.ones_like(beta)
    sbar = torch.zeros_like(beta)
    size, norm = beta, alpha.square()
    done = converged = (alphabar == 0) | (beta == 0)
    used = 0
    for used in range(1, iterations + 1):
        u, beta = _unit(apply(v) - alpha[:, None] * u)
        norm = norm + beta.square()
        v, alpha = _unit(transposed(u) - beta[:, None] * v)
        rho_old, rhobar_old = rho, rhobar
        rho = torch.hypot(alphabar, beta)
        c, s = _ratio(alphabar, rho), _ratio(beta, rho)
        theta, alphabar = s * alpha, c * alpha
        thetabar = sbar * rho
        rhobar = torch.hypot(cbar * rho, theta)
        cbar, sbar = _ratio(cbar * rho, rhobar), _ratio(theta, rhobar)
        zeta, zetabar = cbar * zetabar, -sbar * zetabar
        hbar = h - _ratio(thetabar * rho, rho_old * rhobar_old)[:, None] * hbar
        x = x + torch.where(done, 0, _ratio(zeta, rho * rhobar))[:, None] * hbar
        h = v - _ratio(theta, rho)[:, None] * h
        norm = norm + alpha.square()
        # A Krylov space that is used up has given the solution.
        done = done | (alphabar.abs() <= tolerance * norm.sqrt())
        if used % _LOOK_EVERY == 0 or used == iterations or bool(done.all()):
            residual = rows - apply(x)
            length = residual.norm(dim=1)
            slope = transposed(residual).norm(dim=1)
            converged = (length <= tolerance * size) | (slope <= tolerance * norm.sqrt() * length)
            done = done | converged
            if bool(done.all()) or (used < iterations and time_is_up(len(rows))):
                break
    residual = (rows - apply(x)).norm(dim=1)
    return Solution(x=x, residuals=_ratio(residual, size), iterations=used, converged=done)


def _unit(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1, or 0, and their lengths."""
    lengths = values.norm(dim=1)
    return values * _ratio(torch.ones_like(lengths), lengths)[:, None], lengths


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """0 where nothing is divided by."""
    return torch.where(below == 0, 0, above / torch.where(below == 0, 1, below))
