"""Victims small enough to attack in milliseconds, and what they would send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attacker import simulate
from attacker.victim import Victim
from fl_precode import Observation, VariationalBottleneck
from fl_precode.models.input_spec import InputSpec


def inputs(channels: int = 1, side: int = 6, classes: int = 4) -> InputSpec:
    return InputSpec(
        channels=channels, height=side, width=side, classes=classes, mean=(0.5,) * channels, std=(0.25,) * channels
    )


def mlp(spec: InputSpec, *, hidden: int = 12, bias: bool = True, bottleneck: bool = False) -> nn.Sequential:
    d = math.prod(spec.shape)
    middle = [VariationalBottleneck(hidden, latent=5)] if bottleneck else []
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(d, hidden, bias=bias),
        nn.Sigmoid(),
        *middle,
        nn.Linear(hidden, spec.classes, bias=bias),
    )


def convnet(spec: InputSpec, *, bottleneck: bool = False) -> nn.Sequential:
    features = 3 * ((spec.height + 1) // 2) ** 2
    middle = [VariationalBottleneck(features, latent=5)] if bottleneck else []
    return nn.Sequential(
        nn.Conv2d(spec.channels, 3, 3, padding=1, stride=2),
        nn.Sigmoid(),
        nn.Flatten(),
        *middle,
        nn.Linear(features, spec.classes),
    )


def victim(model: nn.Module, spec: InputSpec, *, dtype: torch.dtype = torch.float64) -> Victim:
    return Victim(model=model.to(dtype), inputs=spec)


def images(spec: InputSpec, count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(count, C, H, W), normalised and inside the box."""
    generator = torch.Generator().manual_seed(seed)
    return spec.normalise(torch.rand(count, *spec.shape, generator=generator, dtype=dtype))


def observe(
    one: Victim,
    x: Tensor,
    y: Sequence[int],
    *,
    learning_rate: float | None = None,
    **changes: Any,
) -> Observation:
    """The update of a client with the batch (x, y): its gradient, or one SGD step when a learning rate is given."""
    (seen,) = simulate.observe(one, x, torch.tensor(list(y)), batch_size=len(x), noise=lambda _: _seeded(7))
    fields: dict[str, Any] = {"buffers": {}, "node": "17"}
    if learning_rate is not None:
        fields["update"] = {name: -learning_rate * value for name, value in seen.update.items()}
        fields["kind"] = "weights"
        fields["protocol"] = replace(seen.protocol, name="fedavg", local_steps=1, learning_rate=learning_rate)
    return replace(seen, **{**fields, **changes})


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
