"""Clients with batch normalisation that send their running statistics back, and the statistics of their batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacker.simulate import observe_training
from attacker.victim import Victim
from fl_precode import Observation, Protocol
from fl_precode.local_training import local_training
from tests.attacker import tiny

SPEC = tiny.inputs(side=8)


def norm_net(*, momentum: float | None = 0.1, affine: bool = True, dtype: torch.dtype = torch.float64) -> Victim:
    """Two BatchNorm layers whose running statistics are unlike those of any batch."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(channels, momentum=momentum, affine=affine) for channels in (6, 5)]
    model = nn.Sequential(
        nn.Conv2d(SPEC.channels, 6, 3), norms[0], nn.Sigmoid(), nn.Conv2d(6, 5, 3), norms[1], nn.Sigmoid(),
        nn.Flatten(), nn.Linear(80, SPEC.classes),
    )  # fmt: skip
    for norm in norms:
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2.0)
        norm.num_batches_tracked.fill_(3)
    return Victim(model=model.to(dtype).eval(), inputs=SPEC)


def client(
    victim: Victim, *, images: int = 3, batch: int = 3, epochs: int = 1, rate: float = 0.1
) -> tuple[Tensor, Tensor, Observation, list[list[tuple[Tensor, Tensor]]]]:
    """Images, labels, what a client in training mode sends, and mean and variance (unbiased) by step and layer."""
    dtype = next(victim.model.parameters()).dtype
    x, y = tiny.images(SPEC, images, dtype=dtype), torch.arange(images) % SPEC.classes
    batches = [(x[i : i + batch], y[i : i + batch]) for i in range(0, images, batch)] * epochs
    protocol = Protocol(name="fedavg", batch_norm="batch", learning_rate=rate, local_epochs=epochs, batch_size=batch)
    seen = observe_training(victim, batches, batch_size=images, protocol=protocol)
    return x, y, seen, batch_statistics(victim, batches, rate)


def batch_statistics(
    victim: Victim, batches: Sequence[tuple[Tensor, Tensor]], rate: float
) -> list[list[tuple[Tensor, Tensor]]]:
    """What enters the layers while the client trains."""
    model = copy.deepcopy(victim.model)
    noted: list[tuple[Tensor, Tensor]] = []

    def note(_layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(arguments[0].detach().double(), dim=(0, 2, 3), correction=1)
        noted.append((mean, variance))

    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.register_forward_pre_hook(note)
    local_training(model, batches, learning_rate=rate)
    return [noted[i : i + len(layers)] for i in range(0, len(noted), len(layers))]
