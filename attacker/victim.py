"""The victim as the attacker knows it: model, loss and input domain, all public."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode.bottleneck import track_kl
from fl_precode.models.input_spec import InputSpec


@dataclass(frozen=True, kw_only=True)
class Victim:
    """Public knowledge about the clients' model.

    Attributes:
        model: The architecture, defence included. Its own weights are irrelevant: each observation brings the weights.
            Kept in evaluation mode.
        inputs: Shape, normalisation and number of classes of the images.
        name: Model spec as it stands in the tape, for records (``lenet``).
    """

    model: nn.Module
    inputs: InputSpec
    name: str = "model"

    def __post_init__(self) -> None:
        self.model.eval()

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The clients' training loss: mean cross-entropy plus the penalty of every bottleneck in the model.

        Args:
            inputs: (batch, channels, height, width), normalised.
            labels: (batch,) class indices.

        Returns:
            Scalar, in nats.
        """
        with track_kl() as kl:
            logits = self.model(inputs)
        return F.cross_entropy(logits, labels) + kl.penalty(logits)
