"""The images of a batch in the gradient of a Linear layer: mixed by an unknown matrix, told apart by a ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacker.analytic.low_rank import LowRank
from attacker.analytic.sparse_columns import SparseColumn

_DEPENDENT = 1e-5


@dataclass(frozen=True, kw_only=True)
class Unmixed:
    """A gradient ``dW = deltas.T @ inputs``, taken apart.

    Attributes:
        inputs: (rank, columns), what entered the layer for each image.
        deltas: (rank, rows), the gradient at the layer's output for each image.
        active: (rank, rows) bool, where it is not zero.
        agreement: Share of rows and images whose gradient is zero exactly where the layer's output is not positive.
    """

    inputs: Tensor
    deltas: Tensor
    active: Tensor
    agreement: float


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """What the gradient of a Linear layer followed by a ReLU says of the inputs.

    ``dW = deltas.T @ inputs`` and any factorisation ``left @ right`` differ by an invertible matrix Q:
    ``deltas.T = left @ Q`` and ``inputs = Q^-1 @ right`` (Dimitrov et al., SPEAR, NeurIPS 2024). Sparse
    columns give those of Q up to a factor each, and the bias gradient ``deltas.T @ 1`` the factors.

    Attributes:
        factors: Factors of the weight gradient.
        bias_gradient: (rows,).
        response: (rank, rows), what the layer's weight makes of the right factor, without the bias.
        bias: (rows,), of the layer.
    """

    factors: LowRank
    bias_gradient: Tensor
    response: Tensor
    bias: Tensor

    def best(self, candidates: Sequence[SparseColumn], *, good: float) -> Unmixed | None:
        """What follows from the candidates that explain the ReLU pattern best, as many as there are images.

        The first choice are independent ones with the most zeros; then one at a time is exchanged for another while
        that makes the agreement larger (as SPEAR does).

        Args:
            candidates: Sparse columns.
            good: An agreement that is enough.

        Returns:
            The inputs and gradients, or None when too few are independent.
        """
        order = sorted(candidates, key=lambda candidate: int(candidate.zeros.sum()), reverse=True)
        chosen = self._independent(order)
        unmixed = self.unmix(chosen) if len(chosen) == self.factors.rank else None
        spare = [candidate for candidate in order if not any(candidate is other for other in chosen)][
            : self.factors.rank
        ]
        while unmixed is not None and unmixed.agreement < good:
            better = self._exchanged(chosen, spare, unmixed)
            if better is None:
                break
            chosen, spare, unmixed = better
        return unmixed

    def _exchanged(
        self, chosen: list[SparseColumn], spare: list[SparseColumn], unmixed: Unmixed
    ) -> tuple[list[SparseColumn], list[SparseColumn], Unmixed] | None:
        """The first exchange of one column that makes the agreement larger."""
        for place, other in ((p, o) for p in range(len(chosen)) for o in range(len(spare))):
            trial = [*chosen[:place], spare[other], *chosen[place + 1 :]]
            result = self.unmix(trial)
            if result is not None and result.agreement > unmixed.agreement:
                return trial, [*spare[:other], chosen[place], *spare[other + 1 :]], result
        return None

    def unmix(self, candidates: Sequence[SparseColumn]) -> Unmixed | None:
        """Inputs and gradients from as many columns as there are images, or None when these are dependent."""
        norms = torch.linalg.vector_norm(self.factors.left, dim=0)
        mixing = torch.stack([candidate.vector for candidate in candidates], dim=1)  # on the left singular vectors
        if float(torch.linalg.svdvals(mixing)[-1]) < _DEPENDENT:
            return None
        on_basis = (self.factors.left / norms).T @ self.bias_gradient
        scales = torch.linalg.solve(mixing, on_basis)
        if not bool((scales != 0).all()):
            return None
        inverse = torch.linalg.inv(mixing) * norms / scales[:, None]  # of Q
        active = torch.stack([~candidate.zeros for candidate in candidates])
        deltas = torch.stack([candidate.column for candidate in candidates]) * scales[:, None] * active
        positive = inverse @ self.response + self.bias > 0
        live = active.any(dim=0)  # what is zero for every image may be so for other reasons than the ReLU
        agreement = float((positive == active)[:, live].double().mean())
        return Unmixed(inputs=inverse @ self.factors.right, deltas=deltas, active=active, agreement=agreement)

    def _independent(self, candidates: Sequence[SparseColumn]) -> list[SparseColumn]:
        """The first that are independent of those before them, at most as many as images."""
        chosen: list[SparseColumn] = []
        basis = self.factors.left.new_zeros(self.factors.rank, 0)
        for candidate in candidates:
            rest = candidate.vector - basis @ (basis.T @ candidate.vector)
            rest = rest - basis @ (basis.T @ rest)
            size = float(torch.linalg.vector_norm(rest))
            if size > _DEPENDENT:
                chosen.append(candidate)
                basis = torch.cat([basis, (rest / size)[:, None]], dim=1)
            if len(chosen) == self.factors.rank:
                break
        return chosen
