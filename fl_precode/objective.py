"""What clients minimise."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode.sampling import track_kl


def training_loss(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats plus the penalty of the model's bottlenecks.

    Args:
        model: In training mode, on the inputs' device.
        inputs: (batch, channels, height, width), normalised.
        labels: (batch,) class indices.
    """
    with track_kl() as kl:
        logits = model(inputs)
    return F.cross_entropy(logits, labels) + kl.penalty(logits)
