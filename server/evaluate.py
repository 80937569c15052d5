"""Central evaluation of the global model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode.data import ImageDataset
from fl_precode.models.input_spec import InputSpec
from fl_precode.randomness.random_layers import sample_noise


@torch.no_grad()
def accuracy_and_loss(
    model: nn.Module,
    state: Mapping[str, Tensor],
    images: ImageDataset,
    inputs: InputSpec,
    *,
    seed: int,
    batch_size: int = 256,
) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross-entropy in nats on a whole image set.

    A bottleneck draws noise in evaluation too; the draw is seeded, and the caller's random state is left alone.
    """
    model.load_state_dict(dict(state))
    model.eval()
    device = next(model.parameters()).device
    right, loss = 0, 0.0
    with torch.random.fork_rng(), sample_noise():
        torch.manual_seed(seed)
        for start in range(0, len(images), batch_size):
            pictures, labels = images.batch(range(start, min(start + batch_size, len(images))))
            labels = labels.to(device)
            logits = model(inputs.normalise(pictures).to(device))
            right += int((logits.argmax(dim=1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return right / len(images), loss / len(images)
