"""Number of images, or steps, in a layer's gradient: its numerical rank."""

from __future__ import annotations

import torch
from torch import Tensor

# Singular values below this share of the largest are noise: updates of weights carry float32 rounding of the weights.
RANK_TOLERANCE = 1e-3
RANK_LIMIT = 8


def numerical_rank(matrix: Tensor) -> int:
    """Numerical rank, counted up to `RANK_LIMIT` on a random projection of the rows of (rows, columns)."""
    limit = min(RANK_LIMIT, *matrix.shape)
    generator = torch.Generator(matrix.device).manual_seed(0)
    mix = torch.randn(limit, matrix.shape[0], generator=generator, dtype=torch.float64, device=matrix.device)
    singular = torch.linalg.svdvals(mix @ matrix.double())
    return int((singular > RANK_TOLERANCE * singular[0]).sum())


def rank_words(rank: int) -> str:
    """The rank for a reader: counting stops at the limit.

    >>> rank_words(3), rank_words(8)
    ('3', '8 or more')
    """
    return f"{rank} or more" if rank >= RANK_LIMIT else str(rank)
