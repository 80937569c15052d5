"""Leading eigenvectors of a symmetric map that is only applied, multiple eigenvalues included."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, lobpcg
from torch import Generator, Tensor

_SETTLED: Final = 1e-9
_VECTORS: Final = 40
_ROUNDS: Final = 1_000


def leading_vectors(
    apply: Callable[[Tensor], Tensor], size: int, count: int, *, like: Tensor, generator: Generator
) -> tuple[Tensor, Tensor] | None:
    """The eigenvectors of the largest eigenvalues.

    One vector is found by Lanczos, which takes fewest products. Several may belong to one eigenvalue, of which Lanczos
    finds a part: they are found by LOBPCG, which works on all of them.

    Args:
        apply: A symmetric positive map of (columns, size), row by row.
        size: Size of the space, larger than five times the count.
        count: Eigenvectors, 1 or more.
        like: Dtype and device of what the map takes.
        generator: For the start.

    Returns:
        (count + 1,) eigenvalues, descending, and (count, size) orthonormal eigenvectors; None where they do not settle.
    """

    def product(columns: Any) -> Any:
        rows = torch.from_numpy(np.atleast_2d(np.ascontiguousarray(columns.T))).to(like)
        return apply(rows).cpu().numpy().T.reshape(columns.shape)

    operator = LinearOperator((size, size), matvec=product, matmat=product, dtype=np.float64)
    device = generator.device
    start = torch.randn(size, count + 1, generator=generator, dtype=torch.float64, device=device).cpu().numpy()
    if count == 1:
        try:
            values, vectors = eigsh(
                operator, k=2, which="LA", ncv=min(_VECTORS, size - 1), tol=_SETTLED, v0=start[:, 0], maxiter=_ROUNDS
            )
        except ArpackNoConvergence:
            return None
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the last vector, which need not settle, and of blocks that settled
            values, vectors = lobpcg(operator, start, largest=True, tol=_SETTLED, maxiter=_ROUNDS)
    order = np.argsort(values)[::-1]
    if not np.isfinite(values).all():
        return None
    return (
        torch.from_numpy(values[order].copy()).to(like),
        torch.from_numpy(vectors[:, order[:count]].T.copy()).to(like),
    )
