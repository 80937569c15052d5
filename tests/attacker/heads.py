"""Clients that train a head behind a frozen trunk, on digits."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.simulate import change
from attacker.victim import Victim
from fl_precode import Observation, Protocol
from fl_precode.models.input_spec import InputSpec

SPEC = InputSpec(channels=1, height=8, width=8, classes=10, mean=(0.5,), std=(0.25,))


def digits(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Normalised images and labels."""
    data = load_digits()
    images = torch.tensor(data.images[:count] / 16, dtype=dtype)[:, None]
    return SPEC.normalise(images), torch.tensor(data.target[:count])


def frozen_trunk(
    head: nn.Module | None = None, *, middle: tuple[nn.Module, ...] = (), seed: int = 0, maps: int = 8
) -> nn.Sequential:
    """A convolution that nobody trains, and a head, by default one Linear layer."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Conv2d(1, maps, 3), nn.ReLU(), *middle, nn.Flatten()).requires_grad_(False)
    return nn.Sequential(*trunk, *(head or nn.Sequential(nn.Linear(36 * maps, 10))))


def seen_of(
    model: nn.Module, x: Tensor, y: Tensor, *, protocol: Protocol | None = None, training: bool = False
) -> tuple[Victim, Observation]:
    """A victim, and the gradient of its client; the weights that it trained where a protocol tells a learning rate."""
    model = model.to(x.dtype).train(training)
    sent, frozen = deepcopy(model), {n for n, value in model.named_parameters() if not value.requires_grad}
    state = {name: value.detach().clone() for name, value in (*sent.named_parameters(), *sent.named_buffers())}
    protocol = protocol or Protocol(name="fedsgd", batch_norm="batch" if training else "buffers")
    own = [value for value in model.parameters() if value.requires_grad]
    model.zero_grad()
    if protocol.learning_rate is None:
        F.cross_entropy(model(x), y).backward()
        update = {name: value.grad for name, value in model.named_parameters() if name not in frozen}
    else:
        optimiser = torch.optim.SGD(own, lr=protocol.learning_rate, momentum=protocol.momentum or 0.0)
        size = protocol.batch_size or len(x)
        for step in range(protocol.local_steps or 1):
            chosen = [(step * size + place) % len(x) for place in range(size)]
            optimiser.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimiser.step()
        update = {name: value for name, value in change(sent, model).items() if name not in frozen}
    return Victim(model=sent.eval(), inputs=SPEC), Observation(
        parameters={name: state[name] for name in update},
        buffers={name: value for name, value in state.items() if name not in update},
        update={name: value for name, value in update.items() if value is not None},
        kind="gradient" if protocol.learning_rate is None else "weights",
        batch_size=len(x),
        protocol=replace(protocol, loss="cross-entropy"),
        round=1,
        node="3",
        frozen=frozenset(frozen),
    )


def features_of(model: nn.Sequential, x: Tensor, *, layer: int) -> Tensor:
    """What enters a layer of a sequential model, flattened."""
    with torch.no_grad():
        return model[:layer](x).flatten(1)
