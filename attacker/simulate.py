"""Observations of simulated clients as a server has them, for experiments, measurements and tests.

One step is a gradient of the victim's own loss, several are `fl_precode.local_training`. What the clients of the
reference app do besides, defences included, is in `attacker.experiments.clients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Final

import torch
from torch import Generator, Tensor, nn

from attacker.victim import Victim
from fl_precode.defences.on_gradients import Batch
from fl_precode.local_training import local_training
from fl_precode.observation import Observation, Protocol, UpdateKind
from fl_precode.randomness.random_layers import sample_noise

FEDSGD: Final = Protocol(name="fedsgd", batch_norm="buffers")


def observe(
    victim: Victim,
    inputs: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    protocol: Protocol = FEDSGD,
    noise: Callable[[int], Generator] | None = None,
) -> list[Observation]:
    """What FedSGD clients with consecutive batches send, all at the weights that the victim's model has.

    Args:
        victim: The model, on the device of the images and in the mode that the clients' models have.
        inputs: (n, channels, height, width), normalised.
        labels: (n,) class indices.
        batch_size: Images of one client; what is left over at the end is not sent.
        protocol: What is announced.
        noise: What bottlenecks draw from, by the client's number from 0; None for the operating system.
    """
    named = dict(victim.model.named_parameters())
    updates = []
    for client in range(len(inputs) // batch_size):
        batch = slice(client * batch_size, (client + 1) * batch_size)
        with nullcontext() if noise is None else sample_noise(generator=noise(client)):
            loss = victim.training_loss(inputs[batch], labels[batch])
        gradients = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
        updates.append(dict(zip(named, gradients, strict=True)))
    return observed(victim.model, updates, kind="gradient", batch_size=batch_size, protocol=protocol)


def observe_training(victim: Victim, batches: Sequence[Batch], *, batch_size: int, protocol: Protocol) -> Observation:
    """What a FedAvg client sends that makes a step on each batch, from the weights that the victim's model has.

    Args:
        victim: The model; it is left as it is.
        batches: Normalised images and labels of each step.
        batch_size: Distinct images of all steps.
        protocol: What the client does and announces; batch normalisation goes by its buffers unless it says otherwise.

    Raises:
        ValueError: If the protocol names no learning rate.
    """
    if protocol.learning_rate is None:
        raise ValueError("expected the learning rate that the client trains with: give the protocol a learning_rate")
    model = deepcopy(victim.model)
    local_training(
        model,
        batches,
        learning_rate=protocol.learning_rate,
        momentum=protocol.momentum or 0.0,
        weight_decay=protocol.weight_decay or 0.0,
        optimiser=protocol.optimiser or "sgd",
        batch_norm=protocol.batch_norm or "buffers",
        loss=victim.criterion,
    )
    seen = observed(victim.model, [change(victim.model, model)], kind="weights", batch_size=batch_size,
                    protocol=protocol)[0]  # fmt: skip
    return replace(seen, returned={name: value.detach().clone() for name, value in model.named_buffers()})


def change(received: nn.Module, trained: nn.Module) -> dict[str, Tensor]:
    """Trained minus received weights, by parameter name."""
    before = dict(received.named_parameters())
    return {name: (value - before[name]).detach() for name, value in trained.named_parameters()}


def observed(
    model: nn.Module,
    updates: Iterable[Mapping[str, Tensor]],
    *,
    kind: UpdateKind,
    batch_size: int,
    protocol: Protocol,
) -> list[Observation]:
    """What the server sees of clients that got the weights of a model and send these updates, all in one round.

    Args:
        model: Received by all.
        updates: Updates of each client, by parameter name; clients are numbered from 0.
        kind: What they are.
        batch_size: Distinct images behind each.
        protocol: What is announced.
    """
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    return [
        Observation(
            parameters=parameters,
            buffers=buffers,
            update=update,
            kind=kind,
            batch_size=batch_size,
            protocol=protocol,
            round=1,
            node=str(client),
        )
        for client, update in enumerate(updates)
    ]
