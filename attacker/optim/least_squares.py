"""Least squares by a dense factorisation, rounded alike each time."""

from __future__ import annotations

import torch
from torch import Tensor


def least_squares(left: Tensor, right: Tensor) -> Tensor:
    """The x of least norm among those that minimise ``|left x - right|``.

    PyTorch's own choice on a CPU, ``gelsy``, rounds its last digits differently from call to call in torch 2.6, so that
    one seed would give two reports. A GPU has one method, which wants columns that are independent.

    Args:
        left: (rows, unknowns).
        right: (rows, columns), or (rows,) for a single right-hand side.

    Returns:
        (unknowns, columns), or (unknowns,).

    >>> least_squares(torch.ones(2, 2), torch.tensor([[1.0], [3.0]])).round(decimals=4).flatten().tolist()
    [1.0, 1.0]
    """
    solution: Tensor = torch.linalg.lstsq(left, right, driver="gelsd" if left.device.type == "cpu" else "gels").solution
    return solution
