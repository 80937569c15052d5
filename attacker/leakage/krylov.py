"""Largest eigenvalue, damped inverse and traces of a symmetric matrix that is known by its products only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A symmetric, positive semi-definite matrix: (n,) to (n,)."""


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest eigenvalue as Lanczos found it.

    Attributes:
        value: Ritz value, never more than the true one (but for rounding).
        residual: ``||A v - value v||``: an eigenvalue lies within so much of ``value``.
        vector: (n,), the Ritz vector; a start for the next matrix alike.
        steps: Products with the matrix.
    """

    value: float
    residual: float
    vector: Tensor
    steps: int

    @property
    def upper(self) -> float:
        """``value + residual``, for bounds that must not come out too large."""
        return self.value + self.residual


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A damped system as conjugate gradients left it.

    Attributes:
        solution: (n,).
        bound: The error is at most this share of the solution: residual / damping.
        steps: Products with the matrix.
    """

    solution: Tensor
    bound: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class TraceEstimate:
    """An estimated trace.

    Attributes:
        value: Mean over probes.
        deviation: Standard error of that mean; None with a single probe.
        steps: Products with the matrix.
    """

    value: float
    deviation: float | None
    steps: int


@dataclass(frozen=True, kw_only=True)
class Tridiagonal:
    """Lanczos: A restricted to a Krylov space.

    Attributes:
        diagonal: (k,).
        beside: (k,), what stands beside the diagonal; the last belongs to the next step.
        basis: (k, n), orthonormal rows.
    """

    diagonal: Tensor
    beside: Tensor
    basis: Tensor

    def eigh(self) -> tuple[Tensor, Tensor]:
        """Ritz values, smallest first, and their vectors in the basis, by column; float64."""
        off = self.beside[:-1]
        values, vectors = torch.linalg.eigh(torch.diag(self.diagonal) + torch.diag(off, 1) + torch.diag(off, -1))
        return values, vectors


def lanczos(product: Product, start: Tensor, steps: int, *, stop: Callable[[Tridiagonal], bool]) -> Tridiagonal:
    """Lanczos with full reorthogonalisation (Golub, Van Loan, Matrix Computations, section 10.3).

    Args:
        product: The matrix.
        start: (n,), any vector but zero.
        steps: At most; n are always enough.
        stop: Asked after each step.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        vector = product(basis[-1])
        diagonal.append(float(basis[-1] @ vector))
        so_far = torch.stack(basis)
        for _ in range(2):  # twice is enough
            vector = vector - so_far.T @ (so_far @ vector)
        rest = float(vector.norm())
        beside.append(rest)
        state = Tridiagonal(
            diagonal=torch.tensor(diagonal, dtype=torch.float64),
            beside=torch.tensor(beside, dtype=torch.float64),
            basis=so_far,
        )
        tiny = torch.finfo(vector.dtype).eps * max(map(abs, diagonal))
        if len(diagonal) >= min(steps, len(start)) or rest <= tiny or stop(state):
            return state
        basis.append(vector / rest)


def largest_eigenvalue(product: Product, start: Tensor, *, tolerance: float = 1e-3, steps: int = 100) -> Largest:
    """The largest eigenvalue by Lanczos, until its residual is at most ``tolerance`` of it.

    Args:
        product: The matrix.
        start: (n,), a random vector, or the eigenvector of a matrix alike.
        tolerance: Relative.
        steps: At most.

    Raises:
        ValueError: If the matrix is zero.
    """

    def good_enough(state: Tridiagonal) -> bool:
        values, vectors = state.eigh()
        return bool(state.beside[-1] * vectors[-1, -1].abs() <= tolerance * values[-1])

    return top_of(lanczos(product, start, steps, stop=good_enough))


def top_of(state: Tridiagonal) -> Largest:
    """The largest eigenvalue as a Lanczos run left it.

    Raises:
        ValueError: If the matrix is zero.
    """
    values, vectors = state.eigh()
    if float(values[-1]) <= 0:
        raise ValueError("the matrix has no positive eigenvalue: nothing of the image reaches the gradient")
    return Largest(
        value=float(values[-1]),
        residual=float(state.beside[-1] * vectors[-1, -1].abs()),
        vector=vectors[:, -1].to(state.basis) @ state.basis,
        steps=len(state.diagonal),
    )


def solve_damped(
    product: Product, right: Tensor, damping: float, *, tolerance: float = 1e-2, steps: int = 2000
) -> Solved:
    """``(A + damping 1)^-1 right`` by conjugate gradients (Hestenes, Stiefel 1952) from zero.

    No eigenvalue of the damped matrix is below ``damping``, so that residual / damping bounds the error whatever the
    spectrum: iterations end when that is at most ``tolerance`` of the solution.

    Args:
        product: The matrix A.
        right: (n,).
        damping: Absolute, positive.
        tolerance: Share of the solution's norm.
        steps: At most.

    Raises:
        ValueError: If the damping is not positive.
    """
    if not damping > 0:
        raise ValueError(f"expected a positive damping, got {damping}; without one the error cannot be bounded")
    solution, residual = torch.zeros_like(right), right.clone()
    direction, square = residual.clone(), float(residual @ residual)
    done = 0
    while done < steps and math.sqrt(square) > tolerance * damping * float(solution.norm()):
        along = product(direction) + damping * direction
        step = square / float(direction @ along)
        solution = solution + step * direction
        residual = residual - step * along
        before, square = square, float(residual @ residual)
        direction = residual + square / before * direction
        done += 1
    size = float(solution.norm())
    return Solved(solution=solution, bound=math.sqrt(square) / (damping * size) if size else 0.0, steps=done)


def trace_of(
    product: Product,
    function: Callable[[Tensor], Tensor],
    like: Tensor,
    *,
    probes: int,
    steps: int,
    generator: torch.Generator,
) -> TraceEstimate:
    """The trace of f(A) by stochastic Lanczos quadrature (Ubaru, Chen, Saad, SIAM J. Matrix Anal. 2017).

    Args:
        product: The matrix A.
        function: f, of eigenvalues (k,).
        like: (n,), gives size, dtype and device.
        probes: Random vectors of signs, at least 1.
        steps: Lanczos steps for each; the smallest eigenvalues need the most.
        generator: Generator of the probes.
    """
    estimates: list[float] = []
    used = 0
    for _ in range(probes):
        signs = torch.randint(2, like.shape, generator=generator, device=generator.device).to(like) * 2 - 1
        state = lanczos(product, signs, steps, stop=lambda _: False)
        values, vectors = state.eigh()
        estimates.append(len(like) * float(vectors[0].square() @ function(values.clamp(min=0))))
        used += len(values)
    mean = sum(estimates) / probes
    spread = (
        math.sqrt(sum((estimate - mean) ** 2 for estimate in estimates) / (probes * (probes - 1)))
        if probes > 1
        else None
    )
    return TraceEstimate(value=mean, deviation=spread, steps=used)
