"""Honest clients show much that noise shows as well: it is said, with its reason, and never held against them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.audit.inputs.defence_check import Sighting, sightings
from attacker.victim import Victim
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation, Protocol

SPEC = InputSpec(channels=1, height=12, width=12, classes=10, mean=(0.0,), std=(1.0,))
STEPS, BATCH = 3, 2


class Wide(nn.Module):
    """Two hidden layers, wide enough for what stands beyond six inputs."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(144, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x.flatten(1)))))
        return self.head(F.dropout(h, self.drop, self.training))


def smooth_images(count: int) -> Tensor:
    """Images of few frequencies, as photographs have."""
    generator = torch.Generator().manual_seed(1)
    return F.interpolate(torch.rand(count, 1, 4, 4, generator=generator), size=(12, 12), mode="bicubic")


Change = Callable[[nn.Module], None]


def trained(
    optimiser: Callable[..., torch.optim.Optimizer],
    *,
    after_backward: Change | None = None,
    flips: bool = False,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    steps: int = STEPS,
    model: nn.Module | None = None,
    half: bool = False,
) -> tuple[Victim, Observation]:
    """The update of a client that announces SGD's settings, and no defence, whatever it does."""
    torch.manual_seed(0)
    model = Wide() if model is None else model
    net = deepcopy(model).train()
    net = net.bfloat16() if half else net
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    images, labels = smooth_images(STEPS * BATCH), torch.arange(STEPS * BATCH)
    step = optimiser(net.parameters())
    for place in range(steps):
        chosen = slice(place * BATCH, place * BATCH + BATCH)
        x, y = images[chosen], labels[chosen]
        if flips:  # each image and its mirror image in one step
            x, y = torch.cat([x, x.flip(-1)]), torch.cat([y, y])
        step.zero_grad()
        loss = F.cross_entropy(net(x.bfloat16() if half else x), y)
        (loss if penalty is None else loss + penalty(net)).backward()
        if after_backward is not None:
            after_backward(net)
        step.step()
    return Victim(model=model, inputs=SPEC), Observation(
        parameters=before,
        buffers={},
        update={name: value.detach().float() - before[name] for name, value in net.named_parameters()},
        kind="weights",
        batch_size=steps * BATCH,
        protocol=Protocol(name="fedavg", local_steps=steps, learning_rate=0.1, batch_size=BATCH, defence="none"),
        round=1,
        node="1",
    )


def sgd(**settings: float) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.1, **settings)


def each_gradient(change: Callable[[Tensor], Tensor]) -> Change:
    def changed(model: nn.Module) -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.copy_(change(parameter.grad))

    return changed


def seen(defence: str = "none", **client: object) -> Sighting:
    victim, observation = trained(client.pop("optimiser", sgd()), **client)  # type: ignore[arg-type]
    (found,) = sightings(victim, observation, defence)
    return found


HONEST = {
    "weight decay with momentum": (
        {"optimiser": sgd(momentum=0.9, weight_decay=5e-3)},
        "reason shows: weight decay",
    ),
    "L1": (
        {"penalty": lambda net: 1e-3 * sum(one.abs().sum() for one in net.parameters())},
        "reason shows: an L1 penalty",
    ),
    "RMSprop": ({"optimiser": lambda own: torch.optim.RMSprop(own, lr=1e-3)}, "reason shows: an adaptive optimiser"),
    "AdamW": ({"optimiser": lambda own: torch.optim.AdamW(own, lr=1e-3)}, "reason shows: an adaptive optimiser"),
    "bfloat16": ({"half": True}, "reason shows: low precision (the numbers lie on the grid of bfloat16"),
    "gradients rounded to 16 bits": (
        {"after_backward": each_gradient(lambda one: one.bfloat16().float())},
        "It may be noise, or low precision",
    ),
    "mirrored images": ({"flips": True}, "a sum of 12 outer products, and noise is no sum of few"),
    "capped entries": (
        {"steps": 1, "after_backward": each_gradient(lambda one: one.clamp(-2e-2, 2e-2))},
        "have the largest size exactly",
    ),
}


@pytest.mark.parametrize(("client", "says"), HONEST.values(), ids=HONEST)
def test_what_honest_clients_do_is_seen_and_does_not_contradict(client, says):
    found = seen(**client)
    assert says in found.sentence
    assert "more-than-its-inputs" in found.sentence.codes
    assert not found.contradicts


@pytest.mark.parametrize("large", [1e-3, 1e-1])
def test_a_penalty_that_was_announced_is_no_sighting(large):
    victim, observation = trained(sgd(weight_decay=large))
    announced = replace(observation, protocol=replace(observation.protocol, weight_decay=large))
    assert sightings(victim, announced, "none") == ()
    assert [one.contradicts for one in sightings(victim, observation, "none")] == [False]


def test_plain_clients_show_nothing():
    for client in ({}, {"optimiser": sgd(momentum=0.9)}, {"model": Wide(drop=0.5)}):
        victim, observation = trained(client.pop("optimiser", sgd()), **client)
        assert sightings(victim, observation, "none") == ()


def added(std: float) -> Change:
    generator = torch.Generator().manual_seed(2)
    return each_gradient(lambda one: one + std * torch.randn(one.shape, generator=generator))


@pytest.mark.parametrize("std", [1e-3, 1e-2])
@pytest.mark.parametrize(
    "client",
    [{}, {"optimiser": sgd(weight_decay=5e-3, momentum=0.9)}, {"flips": True}],
    ids=["plain", "decay", "flips"],
)
def test_noise_that_nobody_announced_contradicts_whatever_stands_beside_it(client, std):
    found = seen(after_backward=added(std), **client)
    assert found.contradicts
    assert found.sentence.code == "unexplained-rest"
    silent = seen("unknown", after_backward=added(std), **client)
    assert not silent.contradicts  # who announced nothing contradicts nothing
    assert silent.sentence == found.sentence


def test_noise_on_numbers_that_are_sent_in_16_bits_is_no_rounding():
    victim, observation = trained(sgd(), after_backward=added(0.3))
    sent = {name: (observation.parameters[name] + value).bfloat16() for name, value in observation.update.items()}
    update = {name: value.float() - observation.parameters[name] for name, value in sent.items()}
    (found,) = sightings(victim, replace(observation, update=update), "none")
    assert found.contradicts


def pruned(share: float) -> Callable[[Tensor], Tensor]:
    return lambda one: torch.where(one.abs() > one.abs().flatten().kthvalue(int(share * one.numel())).values, one, 0.0)


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_pruning_that_nobody_announced_shows_and_units_that_dropout_switched_off_do_not(share, drop):
    victim, observation = trained(sgd(), model=Wide(drop))
    large = {name for name, value in observation.update.items() if value.numel() > 1000}
    cut = {name: pruned(share)(value) if name in large else value for name, value in observation.update.items()}
    (found,) = sightings(victim, replace(observation, update=cut), "none")
    assert found.contradicts
    assert found.sentence.code == "was-pruned"


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_units_that_are_off_are_no_pruning(rows):
    """A classifier behind functional dropout: at its start all of its entries are about as large, or zero."""
    torch.manual_seed(0)
    layer = nn.Linear(512, 10)
    features = F.dropout(torch.full((rows, 512), 0.5) + 0.02 * torch.randn(rows, 512), 0.5)
    F.cross_entropy(layer(features), torch.arange(rows)).backward()
    spec = InputSpec(channels=1, height=1, width=512, classes=10, mean=(0.0,), std=(1.0,))
    model = nn.Sequential(nn.Flatten(), layer)
    victim = Victim(model=model, inputs=spec)
    named = dict(model.named_parameters())
    observation = Observation(
        parameters={name: value.detach() for name, value in named.items()},
        buffers={},
        update={name: value.grad for name, value in named.items()},
        kind="gradient",
        batch_size=rows,
        protocol=Protocol(name="fedsgd", defence="none"),
        round=1,
        node="1",
    )
    assert sightings(victim, observation, "none") == ()
