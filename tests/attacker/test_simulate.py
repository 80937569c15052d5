"""Simulated clients send what clients send that do the same work by torch alone."""

from __future__ import annotations

import pytest
import torch

from attacker.simulate import observe, observe_training
from attacker.victim import Victim
from fl_precode import Protocol
from tests.attacker import tiny
from tests.attacker.local_clients import train

SPEC = tiny.inputs()
X, Y = tiny.images(SPEC, 5), torch.tensor([0, 1, 2, 3, 0])


def drawn(client: int) -> torch.Generator:
    return torch.Generator().manual_seed(client)


def test_clients_send_the_gradients_of_consecutive_batches():
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    seen = observe(victim, X, Y, batch_size=2)
    assert [(one.batch_size, one.node, one.kind) for one in seen] == [(2, "0", "gradient"), (2, "1", "gradient")]
    named = dict(victim.model.named_parameters())
    loss = torch.nn.functional.cross_entropy(victim.model(X[2:4]), Y[2:4])
    for name, expected in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
        torch.testing.assert_close(seen[1].update[name], expected)
        assert seen[1].parameters[name].equal(named[name])


def test_each_client_has_noise_of_its_own_that_can_be_drawn_again():
    victim = tiny.victim(tiny.convnet(SPEC, bottleneck=True), SPEC)
    same = torch.cat([X[:1], X[:1]])
    first, second = observe(victim, same, Y[:1].repeat(2), batch_size=1, noise=drawn)
    (again,) = observe(victim, same[:1], Y[:1], batch_size=1, noise=drawn)
    assert all(first.update[name].equal(value) for name, value in again.update.items())
    assert not all(first.update[name].equal(value) for name, value in second.update.items())


@pytest.mark.parametrize("more", [{}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_local_training_is_sgd_on_each_batch_in_turn(more):
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    before = {name: value.detach().clone() for name, value in victim.model.named_parameters()}
    protocol = Protocol(name="fedavg", local_steps=3, learning_rate=0.1, batch_norm="buffers", **more)
    batches = [[0, 1], [2, 3], [4, 0]]
    seen = observe_training(victim, [(X[one], Y[one]) for one in batches], batch_size=5, protocol=protocol)
    expected = train(victim, X, Y, batches, protocol)
    assert (seen.kind, seen.batch_size, seen.protocol) == ("weights", 5, protocol)
    for name, value in expected.update.items():
        torch.testing.assert_close(seen.update[name], value)
        assert float(value.abs().max()) > 0
        assert victim.model.get_parameter(name).equal(before[name])


def test_training_without_a_learning_rate_is_refused():
    victim = Victim(model=tiny.mlp(SPEC), inputs=SPEC)
    with pytest.raises(ValueError, match="expected the learning rate"):
        observe_training(victim, [(X, Y)], batch_size=5, protocol=Protocol(name="fedavg"))
