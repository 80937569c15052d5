"""Labels that the threat model grants to an attack."""

from __future__ import annotations

import torch
from torch import Tensor


def check_labels(labels: Tensor, *, batch_size: int, classes: int) -> Tensor:
    """Granted labels as int64 (batch,), checked.

    Raises:
        ValueError: If there is not one for each image, or one is no class of the model.
    """
    if labels.shape != (batch_size,):
        raise ValueError(
            f"expected granted labels of shape ({batch_size},), one for each image of the batch, "
            f"got {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"expected granted labels to be whole numbers (int64), got {labels.dtype}")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"expected granted labels from 0 to {classes - 1}, got {labels.tolist()}")
    return labels.long()
