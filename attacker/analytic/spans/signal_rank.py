"""Number of outer products above the noise of a gradient, and the factors that they span."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from attacker.analytic.low_rank import LowRank
from attacker.reasons import Reason, because

EDGE: Final = 4.0
"""Times the largest singular value of noise (std times the roots of rows and columns) above which a value is signal.
Rounding of float32 is larger where the gradient is, and was measured to reach 2."""

_OVERSAMPLING = 16
_FEWEST = 8
"""Directions beyond those of interest that are enough to measure noise by."""

_ROUNDS = 4
_ROUNDING = 8 * torch.finfo(torch.float64).eps


def above_noise(matrix: Tensor, limit: int, *, name: str, expected: int | None = None) -> LowRank | Reason:
    """The factors of a sum of outer products whose singular values stand above the noise beside them.

    Unlike `attacker.analytic.low_rank.factorise` it asks for no step in the spectrum: the weak directions of many
    images come down to the rounding of float32 without one. The noise is measured by what is left outside the leading
    directions, whose largest singular value is known for independent entries.

    Args:
        matrix: (rows, columns), a weight gradient, with the bias gradient as a further column perhaps.
        limit: Largest rank of interest, 1 or more.
        name: Name of the parameter that it is the gradient of.
        expected: Number of outer products, where it is known; without it they are at most half of what the matrix can
            hold, as noise has to show beside them.

    Returns:
        The factors, in float64, of more outer products than expected where signal goes on; or why there are none: the
        gradient is zero, or signal does not end at the limit.
    """
    rounding = torch.finfo(matrix.dtype).eps / 2
    matrix = matrix.double()
    size = float(torch.linalg.vector_norm(matrix))
    if size == 0:
        return because("gradient-is-zero.matrix", name=name)
    room = min(matrix.shape)
    most = max(1, min(limit, room // 2))
    if expected is not None:
        most = max(1, min(expected, room - 1))
    left, values, right = _leading(matrix, most + min(_OVERSAMPLING, (room - most) // 2))
    if expected is not None and room - most < _FEWEST:
        # Too few directions are left to measure noise by: no more than rounding is taken for it.
        noise = rounding * size / matrix.numel() ** 0.5
        rank = int((values[:most] > _edge(matrix, noise)).sum())
    else:
        rank, noise = _counted(matrix, left, values, right)
    if rank > most and expected is None:
        return because("rank-unclear", name=name, rank=most, first=float(values[0]), last=float(values[-1]))
    if rank == 0:
        return because("rank-unclear.noise", name=name, first=float(values[0]), noise=noise)
    return LowRank(left=left[:, :rank] * values[:rank], right=right[:rank], noise=noise)


def _counted(matrix: Tensor, left: Tensor, values: Tensor, right: Tensor) -> tuple[int, float]:
    """Values above the noise, and its standard deviation: measured anew as directions turn out to be none of signal."""
    rows, columns = matrix.shape
    size, rank = float(torch.linalg.vector_norm(values)), len(values)
    while True:
        rest = matrix - (left[:, :rank] * values[:rank]) @ right[:rank]
        entries = max(1, (rows - rank) * (columns - rank))
        noise = max(float(torch.linalg.vector_norm(rest)), _ROUNDING * size) / entries**0.5
        above = int((values > _edge(matrix, noise)).sum())
        if above >= rank:
            return above, noise
        rank = above


def _edge(matrix: Tensor, noise: float) -> float:
    """Above which a singular value is none of noise of this standard deviation."""
    return float(EDGE * noise * (matrix.shape[0] ** 0.5 + matrix.shape[1] ** 0.5))


def _leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets by subspace iteration; directions far below the largest need several rounds."""
    width = min(count + _OVERSAMPLING, *matrix.shape)
    generator = torch.Generator(matrix.device).manual_seed(0)
    probe = torch.randn(matrix.shape[0], width, generator=generator, dtype=matrix.dtype, device=matrix.device)
    basis = torch.linalg.qr(matrix.T @ probe).Q
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q
    left, values, turned = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return left[:, :count], values[:count], (turned @ basis.T)[:count]
