"""Clients that train locally with torch's own SGD, and what a server sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from attacker.victim import Victim
from fl_precode import Observation, Protocol, sample_noise


def train(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Sequence[int]],
    protocol: Protocol,
    *,
    noise: Sequence[Tensor] = (),
    **changes: object,
) -> Observation:
    """The update after one step on each of ``batches``, lists of indices of ``images``.

    Without ``noise`` a bottleneck draws its own at every step.
    """
    model = deepcopy(victim.model)
    client = replace(victim, model=model)
    assert protocol.learning_rate is not None
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=protocol.learning_rate,
        momentum=protocol.momentum or 0.0,
        weight_decay=protocol.weight_decay or 0.0,
    )
    for batch in batches:
        optimiser.zero_grad()
        with sample_noise(values=[value[list(batch)] for value in noise]) if noise else nullcontext():
            client.training_loss(images[list(batch)], labels[list(batch)]).backward()
        optimiser.step()
    before = {name: value.detach().clone() for name, value in victim.model.named_parameters()}
    after = dict(model.named_parameters())
    fields: dict[str, object] = {
        "parameters": before,
        "buffers": {},
        "update": {name: after[name].detach() - value for name, value in before.items()},
        "kind": "weights",
        "batch_size": len({index for batch in batches for index in batch}),
        "protocol": protocol,
        "round": 1,
        "node": "17",
    }
    return Observation(**{**fields, **changes})  # type: ignore[arg-type]
