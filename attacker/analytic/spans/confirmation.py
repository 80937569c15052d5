"""One confirmation for whatever takes a Linear layer's gradient apart: the gradient itself."""

from __future__ import annotations

import torch
from torch import Tensor


def unexplained(weight_gradient: Tensor, deltas: Tensor, inputs: Tensor) -> float:
    """Share of a weight gradient that inputs, with the gradients at the layer's output, leave over.

    It confirms something only where ``deltas`` do not follow from ``weight_gradient`` and ``inputs`` themselves: any
    basis of its row space explains it.

    Args:
        weight_gradient: (units, features), of a sum over images.
        deltas: (images, units).
        inputs: (images, features).

    >>> one = torch.tensor([[1.0, 2.0]])
    >>> round(unexplained(one.T @ one, one, 1.1 * one), 3)
    0.1
    """
    size = torch.linalg.vector_norm(weight_gradient)
    return float(torch.linalg.vector_norm(weight_gradient - deltas.T @ inputs) / size.clamp_min(1e-300))
