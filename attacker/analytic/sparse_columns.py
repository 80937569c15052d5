"""Sparse columns in the range of a matrix: what tells the images of a batch apart behind a ReLU (SPEAR)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacker.optim.deadline import time_is_up

_FIRST_STACK = 64
_ENTRIES = 2**22
"""Numbers in the largest stack of products that is formed at once (32 MiB)."""

_SIGMAS = 30.0
"""Entries below this many standard deviations of the noise count as zero; rounding is not Gaussian."""

_LOOSE = 1e-3
"""Share of a column's root mean square below which an entry may be zero before the kernel is polished."""

_SAME = 1e-6
_SAME_REJECTED = 1e-10
"""One minus the cosine of directions that count as one. A true column may be close to a combination that was rejected,
with little of another column in it."""

_OUTSIDE = 1e-4
_POLISHINGS = 8
_LOOKED_AT = 64
"""Kernels of one stack that are polished, those with the most zeros."""


@dataclass(frozen=True, kw_only=True)
class SparseColumn:
    """A direction in which the left factor has many zeros.

    Attributes:
        vector: (rank,), coordinates on the left singular vectors, of norm 1.
        column: (rows,), the sparse column, of norm 1.
        zeros: (rows,) bool, where it is zero; rows that are zero in every column count as zero.
    """

    vector: Tensor
    column: Tensor
    zeros: Tensor


@dataclass(frozen=True, kw_only=True)
class ColumnSearch:
    """What a search found.

    Attributes:
        candidates: Sparse columns, in the order of discovery.
        samples: Submatrices whose kernels were taken.
    """

    candidates: list[SparseColumn]
    samples: int


class SparseColumns:
    """Looks for the columns of ``left @ Q`` that are zero in many rows, for an unknown invertible Q.

    Where ``rank - 1`` sampled rows of ``left`` all belong to units that are zero for one image, the kernel of these
    rows is that image's column of Q (Dimitrov et al., SPEAR, NeurIPS 2024). With each unit zero for half of
    the images, a sample hits one of the images with probability ``rank * 2^(1 - rank)``. Kernels are computed in
    stacks, in float64, and polished over all rows that are zero.

    A combination of two images' columns has many zeros too: where both images are off, and where sampled rows force
    it. The latter are indispensable to it, and give it away: a true column is the kernel without any one of its zeros.

    Args:
        left: (rows, rank), float64, orthogonal columns.
        noise: Standard deviation of an entry's error.
    """

    def __init__(self, left: Tensor, noise: float) -> None:
        norms = torch.linalg.vector_norm(left, dim=0)
        self._basis = left / norms  # orthonormal columns
        self._inverse_norms = 1 / norms
        self._noise = noise
        live = torch.linalg.vector_norm(left, dim=1) > _SIGMAS * noise
        self._live = torch.nonzero(live).flatten()
        self._rows = self._basis[self._live]
        self._rejected = self._rows[:0]
        self._loose = _LOOSE * len(left) ** -0.5
        self.rank = left.shape[1]

    def search(self, samples: int, generator: Generator, enough: Callable[[list[SparseColumn]], bool]) -> ColumnSearch:
        """Sample until the candidates are enough or the budget is spent.

        Args:
            samples: Largest number of submatrices.
            generator: Source of the rows, on the CPU.
            enough: Asked whenever there is a new candidate.
        """
        candidates: list[SparseColumn] = []
        if self.rank == 1:
            only = self._polished(self._rows.new_ones(1))
            candidates += [] if only is None else [only]
            enough(candidates)
            return ColumnSearch(candidates=candidates, samples=0)
        done, stack = 0, _FIRST_STACK
        largest = max(1, _ENTRIES // len(self._live))
        while done < samples:
            vectors, tried = self._kernels(min(stack, largest, samples - done), generator)
            done += tried
            if (self._take(vectors, candidates) and enough(candidates)) or (done < samples and time_is_up()):
                break
            stack *= 2
        return ColumnSearch(candidates=candidates, samples=done)

    def _kernels(self, count: int, generator: Generator) -> tuple[Tensor, int]:
        """Kernels of random rows: (at most count, rank), norm 1, and how many submatrices they are of."""
        size = self.rank - 1
        of_one = max(1, len(self._live) // size)  # disjoint submatrices of one permutation
        orders = torch.rand(-(-count // of_one), len(self._live), generator=generator).argsort(dim=1)
        chosen = orders[:, : of_one * size].reshape(-1, size)[:count].to(self._rows.device)
        blocks = self._rows[chosen]  # (count, size, rank)
        solved, info = torch.linalg.solve_ex(blocks[..., :-1], -blocks[..., -1:])
        vectors = torch.cat([solved.squeeze(-1), solved.new_ones(len(solved), 1)], dim=1)
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        return vectors[(info == 0) & vectors.isfinite().all(dim=1)], len(chosen)

    def _take(self, vectors: Tensor, candidates: list[SparseColumn]) -> bool:
        """Add the new sparse ones among the kernels; whether there was one."""
        known = len(candidates)
        zeros = ((vectors @ self._rows.T).abs() < self._loose).sum(dim=1)
        hits = torch.nonzero(zeros >= self._fewest).flatten()
        hits = hits[zeros[hits].argsort(descending=True, stable=True)]
        left = self._unknown(vectors[hits], self._rejected, _SAME_REJECTED)
        for candidate in candidates:
            left = self._unknown(left, candidate.vector[None], _SAME)
        for _ in range(_LOOKED_AT):
            if len(left) == 0:
                break
            outside = self._outside(left, candidates)
            place = int(outside.to(torch.uint8).argmax())  # the first outside, else the first
            tried, polished = left[place : place + 1], self._polished(left[place])
            left = self._unknown(left, tried, _SAME_REJECTED)
            if polished is None:
                self._rejected = torch.cat([self._rejected, tried])
                continue
            left = self._unknown(left, polished.vector[None], _SAME)
            if all(len(self._unknown(polished.vector[None], other.vector[None], _SAME)) for other in candidates):
                candidates.append(polished)
        return len(candidates) > known

    @staticmethod
    def _outside(vectors: Tensor, candidates: list[SparseColumn]) -> Tensor:
        """Which vectors are no combination of the columns found: these have many zeros, and nothing new."""
        if not candidates:
            return vectors.new_ones(len(vectors), dtype=torch.bool)
        basis = torch.linalg.qr(torch.stack([candidate.vector for candidate in candidates], dim=1)).Q
        rest = vectors - (vectors @ basis) @ basis.T
        outside: Tensor = torch.linalg.vector_norm(rest, dim=1) > _OUTSIDE
        return outside

    @staticmethod
    def _unknown(vectors: Tensor, others: Tensor, tolerance: float) -> Tensor:
        """The vectors whose directions are none of the others'."""
        return vectors[((vectors @ others.T).abs() <= 1 - tolerance).all(dim=1)]

    @property
    def _fewest(self) -> int:
        """Zeros below which a kernel is one of the many that are zero in the sampled rows and by accident."""
        return 2 * self.rank + 4

    def _polished(self, vector: Tensor) -> SparseColumn | None:
        """The kernel of all rows that are zero, or None when its zeros do not hold."""
        zeros = self._first_zeros(vector)
        for _ in range(_POLISHINGS if self.rank > 1 else 0):
            if int(zeros.sum()) < self._fewest:
                return None
            vector = torch.linalg.svd(self._rows[zeros]).Vh[-1]
            before, zeros = zeros, (self._rows @ vector).abs() < self._resolution(vector)
            if torch.equal(before, zeros):
                break
        if self.rank > 1 and not self._is_supported(zeros):
            return None
        everywhere = torch.ones(len(self._basis), dtype=torch.bool, device=zeros.device)
        everywhere[self._live] = zeros
        return SparseColumn(vector=vector, column=self._basis @ vector, zeros=everywhere)

    def _first_zeros(self, vector: Tensor) -> Tensor:
        """What is zero in a sampled kernel: as little as determines it, because small entries are not zeros."""
        sizes: Tensor = (self._rows @ vector).abs()
        threshold = self._resolution(vector)
        while threshold < self._loose and int((sizes < threshold).sum()) < self._fewest:
            threshold *= 10
        zeros: Tensor = sizes < threshold
        return zeros

    def _resolution(self, vector: Tensor) -> float:
        """What noise makes of a zero in the column of a unit vector, at most a hundredth of the column's size."""
        amplified = _SIGMAS * self._noise * float(torch.linalg.vector_norm(vector * self._inverse_norms))
        return float(min(amplified, 10 * self._loose))

    def _is_supported(self, zeros: Tensor) -> bool:
        """Whether the zeros have one kernel, with or without any one of them."""
        rows = self._rows[zeros]
        if len(rows) < self._fewest:
            return False
        rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        left, singular, _ = torch.linalg.svd(rows, full_matrices=False)
        if float(singular[-2]) < 1e-6 * float(singular[0]):
            return False
        leverage = left[:, :-1].square().sum(dim=1)
        return float(leverage.max()) < 1 - _SAME
