"""A client's local work: the one place where a defence meets a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_precode.bottleneck import track_kl

Batch = tuple[Tensor, Tensor]


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


def batch_gradient(model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], float]:
    """FedSGD: the gradient of one batch.

    Returns:
        Parameter name to gradient (zeros where the loss does not depend on the parameter), and the loss in nats.
    """
    model.train()
    named = dict(model.named_parameters())
    loss = training_loss(model, *batch)
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    filled = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), gradients, strict=True)}
    return filled, float(loss.detach())


def local_training(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> float:
    """FedAvg: SGD over the batches, in place; plain, or with momentum and weight decay.

    Returns:
        Mean loss over the steps, in nats.
    """
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    total = 0.0
    for inputs, labels in batches:
        optimiser.zero_grad()
        loss = training_loss(model, inputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total += float(loss.detach())
    return total / len(batches)
