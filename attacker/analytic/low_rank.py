"""Number of images in an update of a Linear layer: its rank, the noise beside it, and a factorisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.reasons import Reason, because

GAP = 10.0
"""A singular value this many times the next one ends what images put into the gradient; rounding and noise have
spectra without such steps."""

_OVERSAMPLING = 16
_TINY = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """``matrix = left @ right`` up to noise, in float64.

    Attributes:
        left: (rows, rank), orthogonal columns whose norms are the singular values.
        right: (rank, columns), orthonormal rows.
        noise: Standard deviation of what is left over, for an entry of the matrix, hence for one of ``left`` too;
            never below the rounding of float64.
    """

    left: Tensor
    right: Tensor
    noise: float

    @property
    def rank(self) -> int:
        """Images that are told apart."""
        return self.left.shape[1]


def factorise(matrix: Tensor, limit: int, *, name: str, expected: int | None = None) -> LowRank | Reason:
    """The factors of a sum of a few outer products, as many as the spectrum shows, or why there is no such number.

    The rank is where the last step of `GAP` in the singular values is. Rounding has a spectrum without steps down to
    its own end, so that ranks are looked for up to half of the rows that are not zero.

    Args:
        matrix: (rows, columns), such as a weight gradient.
        limit: Largest rank of interest, 1 or more.
        name: Name of the parameter that it is the gradient of.
        expected: A rank that is taken, where the spectrum has a step there, before later ones.

    Returns:
        The factors, or a reason that says what the spectrum looks like.
    """
    rows = matrix.abs().amax(dim=1) > 0
    alive = int(rows.sum())
    if alive == 0:
        return because("gradient-is-zero.matrix", name=name)
    most = max(1, min(limit, alive // 2, matrix.shape[1]))
    left, singular, right = _leading(matrix, min(most + 1, alive, *matrix.shape))
    floor = _TINY * float(singular[0])
    spectrum = torch.cat([singular, singular.new_full((1,), floor)]).clamp_min(floor)
    steps = (spectrum[:-1] / spectrum[1:] >= GAP)[:most]
    ranks = (torch.nonzero(steps).flatten() + 1).tolist()
    if not ranks:
        first, last = float(singular[0]), float(spectrum[most])
        return because("rank-unclear", name=name, rank=most, first=first, last=last)
    rank = expected if expected in ranks else ranks[-1]
    rest = float(spectrum[rank]) / (matrix.shape[0] ** 0.5 + matrix.shape[1] ** 0.5)
    floor_per_entry = _TINY * float(matrix.abs().max())
    return LowRank(left=left[:, :rank] * singular[:rank], right=right[:rank], noise=max(rest, floor_per_entry))


def _leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets in float64 by subspace iteration (Halko, Martinsson, Tropp 2011, algorithm 4.4)."""
    matrix = matrix.double()
    width = min(count + _OVERSAMPLING, *matrix.shape)
    generator = torch.Generator(matrix.device).manual_seed(0)
    probe = torch.randn(matrix.shape[0], width, generator=generator, dtype=torch.float64, device=matrix.device)
    basis = torch.linalg.qr(matrix.T @ probe).Q
    basis = torch.linalg.qr(matrix.T @ torch.linalg.qr(matrix @ basis).Q).Q  # (columns, width)
    left, singular, turned = torch.linalg.svd(matrix @ basis, full_matrices=False)
    return left[:, :count], singular[:count], (turned @ basis.T)[:count]
