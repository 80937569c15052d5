"""Small models behind bottlenecks, and clients whose noise the test knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attacker.victim import Victim
from fl_precode import Observation, Protocol, VariationalBottleneck, sample_noise
from fl_precode.defences.cvb import ConvBottleneck
from tests.attacker import tiny

SPEC = tiny.inputs()


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 with weights in which images matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.double().parameters():
        parameter.data.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) - 0.5)
    return model


def two_bottlenecks() -> Victim:
    """A bottleneck between layers, and one before the classifier."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Sigmoid(), nn.Flatten(), VariationalBottleneck(32, latent=6), nn.Linear(32, 12),
        nn.Sigmoid(), VariationalBottleneck(12, latent=4), nn.Linear(12, 4),
    )  # fmt: skip
    return Victim(model=spread(model), inputs=SPEC)


def convolutional() -> Victim:
    """A convolutional bottleneck."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), ConvBottleneck(4, 3, kernel=3), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 4)
    )
    return Victim(model=spread(model), inputs=SPEC)


def both_kinds() -> Victim:
    """A convolutional bottleneck in front, PRECODE before the classifier."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), ConvBottleneck(4, 3, kernel=3), nn.Sigmoid(), nn.Flatten(),
        VariationalBottleneck(64, latent=5), nn.Linear(64, 4),
    )  # fmt: skip
    return Victim(model=spread(model), inputs=SPEC)


class Shortcut(nn.Module):
    """A residual block whose shortcut runs after the bottleneck of the main path, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.twice = nn.Conv2d(3, 3, 1)
        self.bottleneck = ConvBottleneck(3, 2, kernel=3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.shortcut = nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.stem(x))
        x = torch.sigmoid(self.conv(self.bottleneck(x)) + self.shortcut(x))
        return self.head(self.twice(x).flatten(1))


def client(victim: Victim, x: Tensor, y: Sequence[int], noise: Sequence[Tensor], **changes: object) -> Observation:
    """The gradient of one batch at the given noise."""
    parameters = dict(victim.model.named_parameters())
    with sample_noise(values=noise):
        loss = victim.training_loss(x, torch.tensor(list(y)))
    found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    fields = {
        "parameters": {name: value.detach().clone() for name, value in parameters.items()},
        "buffers": {},
        "update": dict(zip(parameters, found, strict=True)),
        "kind": "gradient",
        "batch_size": len(x),
        "protocol": Protocol(name="fedsgd", batch_norm="buffers"),
        "round": 1,
        "node": "17",
    }
    return Observation(**(fields | changes))  # type: ignore[arg-type]


def normal(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
