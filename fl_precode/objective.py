"""Training objective of clients."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode.loss import Loss
from fl_precode.randomness.random_layers import track_kl


def training_loss(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss | None = None) -> Tensor:
    """Mean cross-entropy in nats, or another loss, plus the penalty of the model's bottlenecks.

    Args:
        model: In training mode, on the inputs' device.
        inputs: (batch, channels, height, width), normalised.
        labels: (batch,) class indices, or what the other loss takes.
        loss: Loss of (scores, labels), a scalar; None for cross-entropy.
    """
    with track_kl() as kl:
        logits = model(inputs)
    return (loss or F.cross_entropy)(logits, labels) + kl.penalty(logits)
