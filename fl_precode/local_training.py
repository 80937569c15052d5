"""A client's local work without a defence: the gradient of a batch, and training over batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fl_precode.defences.on_gradients import Batch
from fl_precode.loss import Loss
from fl_precode.objective import training_loss


def set_training(model: nn.Module, batch_norm: str) -> None:
    """Training mode, in which batch normalisation goes by the batch ("batch") or by its buffers ("buffers")."""
    model.train()
    if batch_norm == "buffers":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def batch_gradient(
    model: nn.Module, batch: Batch, *, batch_norm: str = "batch", loss: Loss | None = None
) -> tuple[dict[str, Tensor], float]:
    """FedSGD: the gradient of one batch; ``batch_norm`` as in `set_training`, ``loss`` as in `training_loss`.

    Returns:
        Parameter name to gradient, and the loss in nats. Gradients are zero where the parameter is frozen, or the loss
        does not depend on it.
    """
    set_training(model, batch_norm)
    named = dict(model.named_parameters())
    trained = {name: value for name, value in named.items() if value.requires_grad}
    value = training_loss(model, *batch, loss)
    gradients = dict(zip(trained, torch.autograd.grad(value, list(trained.values()), allow_unused=True), strict=True))
    filled = {n: torch.zeros_like(p) if (g := gradients.get(n)) is None else g for n, p in named.items()}
    return filled, float(value.detach())


def local_training(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    optimiser: str = "sgd",
    batch_norm: str = "batch",
    defend: Callable[[nn.Module, Batch], None] | None = None,
    loss: Loss | None = None,
) -> float:
    """FedAvg: SGD over the batches, in place; plain, or with momentum and weight decay. Or ``adam``, without momentum.

    ``defend`` changes each step's gradients before the optimiser sees them; ``loss`` as in `training_loss`.

    Returns:
        Mean loss over the steps, in nats.
    """
    set_training(model, batch_norm)
    steps: torch.optim.Optimizer
    if optimiser == "adam":
        steps = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    else:
        steps = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    total = 0.0
    for inputs, labels in batches:
        steps.zero_grad()
        value = training_loss(model, inputs, labels, loss)
        value.backward()  # type: ignore[no-untyped-call]
        if defend is not None:
            defend(model, (inputs, labels))
        steps.step()
        total += float(value.detach())
    return total / len(batches)
