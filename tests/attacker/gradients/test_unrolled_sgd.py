"""Unrolled local training equals torch's own SGD, in value and in gradient with respect to the images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacker.gradients.distances import cosine_distance, squared_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.fedavg.local_training import LocalTraining, why_not_unrolled
from attacker.gradients.fedavg.unrolled_sgd import (
    LocalTrainingProducts,
    local_training_products,
)
from attacker.gradients.observed import observed_gradient
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.reasons import because
from fl_precode import Observation, Protocol
from tests.attacker import tiny
from tests.attacker.local_clients import train
from tests.attacker.replay_models import DENSE, FACTORED, LOOP
from tests.oracles import loop_gradient

PLAIN = Protocol(name="fedavg", local_steps=4, batch_size=2, learning_rate=0.3)
CASES = {
    "one step": (3, replace(PLAIN, local_steps=1, batch_size=3), [(0, 1, 2)]),
    "two passes of two batches": (4, PLAIN, [(0, 1), (2, 3), (0, 1), (2, 3)]),
    "epochs with a smaller last batch": (
        3,
        replace(PLAIN, local_steps=None, local_epochs=2),
        [(0, 1), (2,), (0, 1), (2,)],
    ),
    "fewer images than a batch": (2, replace(PLAIN, batch_size=9), [(0, 1)] * 4),
    "momentum": (4, replace(PLAIN, momentum=0.9), [(0, 1), (2, 3), (0, 1), (2, 3)]),
    "weight decay": (4, replace(PLAIN, weight_decay=0.1), [(0, 1), (2, 3), (0, 1), (2, 3)]),
    "all of it": (
        3,
        replace(PLAIN, local_steps=None, local_epochs=2, momentum=0.5, weight_decay=0.05),
        [(0, 1), (2,), (0, 1), (2,)],
    ),
}


class Client:
    """A victim that trained on drawn images, and candidates for it."""

    def __init__(self, build, images: int, protocol: Protocol, batches, *, victims: int = 1, restarts: int = 1) -> None:
        torch.manual_seed(0)
        self.spec = tiny.inputs(channels=2, side=5, classes=3)
        self.victim = tiny.victim(build(self.spec), self.spec)
        self.seen = trace(self.victim)
        self.batches = batches
        self.images = torch.randn(victims, images, *self.spec.shape, dtype=torch.float64)
        self.labels = torch.randint(3, (victims, images))
        self.noise = [torch.randn(victims, images, *n, dtype=torch.float64) for n in self.seen.latents]
        self.observations: list[Observation] = [
            train(self.victim, x, y, batches, protocol, noise=[value[v] for value in self.noise])
            for v, (x, y) in enumerate(zip(self.images, self.labels, strict=True))
        ]
        axes = (victims, restarts, images)
        self.candidates = torch.randn(*axes, *self.spec.shape, dtype=torch.float64).requires_grad_(True)
        self.guesses = torch.randint(3, axes)
        self.eps = [torch.randn(*axes, *n, dtype=torch.float64) for n in self.seen.latents]
        self.replay = Replay(self.victim, self.observations[0].parameters, {})

    def plain(self, v: int, r: int) -> Tensor:
        """The update of a candidate by plain double backward, on the scale of the weights, as one vector."""
        protocol = self.observations[0].protocol
        weights = dict(self.observations[0].parameters)
        velocity: dict[str, Tensor] = {}
        for batch in self.batches:
            own = list(batch)
            found = _graph_gradient(
                self.victim,
                weights,
                self.candidates[v, r, own],
                self.guesses[v, r, own],
                [e[v, r, own] for e in self.eps],
            )
            for name, value in found.items():
                step = value + (protocol.weight_decay or 0) * weights[name]
                velocity[name] = step + (protocol.momentum or 0) * velocity.get(name, 0)
            weights = {name: value - protocol.learning_rate * velocity[name] for name, value in weights.items()}
        start = self.observations[0].parameters
        return torch.cat([(weights[name] - value).flatten() for name, value in start.items()])


def _graph_gradient(victim, weights, x, y, noise) -> dict[str, Tensor]:
    """As `loop_gradient`, which cuts the graph of the weights; here they depend on the images."""
    from torch.func import functional_call

    from fl_precode import sample_noise

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = victim.model

        def forward(self) -> Tensor:
            return victim.training_loss(x, y)

    leaves = {name: value if value.requires_grad else value.clone().requires_grad_() for name, value in weights.items()}
    with sample_noise(values=noise):
        loss = functional_call(Loss(), {f"model.{name}": value for name, value in leaves.items()}, ())
    found = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("vmapped", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_true_images_give_the_update_of_torchs_sgd(name, vmapped):
    client = Client(tiny.convnet, *CASES[name], victims=2)
    products = LocalTrainingProducts(client.replay, client.observations, vmapped=vmapped)
    found = products(client.images.unsqueeze(1), client.labels.unsqueeze(1))
    assert float(cosine_distance(found).abs().max()) < 1e-10
    assert float(squared_distance(found).abs().max()) < 1e-10
    turned = products(client.images.flip(1).unsqueeze(1), client.labels.flip(1).unsqueeze(1))
    if len({len(batch) for batch in client.batches}) > 1:
        assert float(cosine_distance(turned).min()) > 1e-6, "the images of a smaller batch are not those of another"


@pytest.mark.parametrize("vmapped", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_equals_plain_double_backward(name, vmapped):
    client = Client(FACTORED["convnet with bottleneck"], *CASES[name], victims=2, restarts=2)
    products = LocalTrainingProducts(client.replay, client.observations, vmapped=vmapped)
    fast = cosine_distance(products(client.candidates, client.guesses, client.eps))
    rows = []
    for v, observation in enumerate(client.observations):
        decay = observation.protocol.weight_decay or 0.0
        units = torch.cat([value.flatten() for value in observed_gradient(observation).values()])
        raw = torch.cat([value.flatten() for value in observation.update.values()])
        sent = torch.cat([value.flatten() for value in observation.parameters.values()])
        scale = float((units + decay * sent) @ raw / (raw @ raw))
        row = [scale * client.plain(v, r) - decay * sent for r in range(2)]
        rows.append(torch.stack([1 - (one @ units) / (one.norm() * units.norm()) for one in row]))
    slow = torch.stack(rows)
    mix = torch.rand_like(slow)
    (slow_gradient,) = torch.autograd.grad((mix * slow).sum(), client.candidates)
    (fast_gradient,) = torch.autograd.grad((mix * fast).sum(), client.candidates)
    torch.testing.assert_close(fast, slow, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(fast_gradient, slow_gradient, atol=1e-8, rtol=1e-8)


def test_one_step_is_the_gradient_on_its_scale():
    client = Client(tiny.mlp, *CASES["one step"], victims=2, restarts=2)
    steps = LocalTrainingProducts(client.replay, client.observations, vmapped=True)(client.candidates, client.guesses)
    targets = [observed_gradient(one) for one in client.observations]
    gradient = LoopProducts(client.replay, targets)(client.candidates, client.guesses)
    for one, other in zip(steps, gradient, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_scale_of_an_update_is_that_of_one_gradient(momentum):
    """At a tiny learning rate all steps see the same weights, so that the mean gradient is the gradient."""
    protocol = Protocol(local_steps=6, batch_size=3, learning_rate=1e-7, weight_decay=0.3, momentum=momentum)
    client = Client(tiny.mlp, 3, protocol, [(0, 1, 2)] * 6)
    x, y = client.images[0], client.labels[0]
    for name, value in loop_gradient(client.victim, client.observations[0].parameters, x, y).items():
        torch.testing.assert_close(observed_gradient(client.observations[0])[name], value.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("build", "vmapped"),
    [(tiny.convnet, True), (DENSE["twice"], True), (DENSE["mixing"], True), (LOOP["shared layer norm"], False)],
)
def test_vmap_is_taken_where_it_is_right(build, vmapped):
    client = Client(build, *CASES["all of it"], restarts=2)
    chosen = local_training_products(client.replay, client.observations, client.seen)
    assert isinstance(chosen, LocalTrainingProducts)
    assert chosen.vmapped == vmapped
    oracle = LocalTrainingProducts(client.replay, client.observations, vmapped=False)
    one, other = (
        torch.autograd.grad(cosine_distance(p(client.candidates, client.guesses)).sum(), client.candidates)[0]
        for p in (chosen, oracle)
    )
    torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)


def test_measuring_needs_no_graph():
    client = Client(tiny.convnet, *CASES["momentum"])
    products = LocalTrainingProducts(client.replay, client.observations, vmapped=True)
    with torch.no_grad():
        measured = cosine_distance(products(client.candidates, client.guesses))
    assert not measured.requires_grad
    torch.testing.assert_close(measured, cosine_distance(products(client.candidates, client.guesses)).detach())


@pytest.mark.parametrize(
    ("announced", "images", "missing"),
    [
        ({"learning_rate": None}, 2, "the learning rate"),
        ({"local_steps": None}, 2, "local steps or epochs"),
        ({"batch_size": None}, 2, "the images of one local step"),
        ({}, None, "the number of images behind the update"),
    ],
)
def test_what_a_replay_needs_is_named(announced, images, missing):
    client = Client(tiny.mlp, 2, PLAIN, [(0, 1)] * 4)
    one = replace(client.observations[0], protocol=replace(PLAIN, **announced), batch_size=images)
    assert why_not_unrolled(one) == because("training-unknown", what=missing)
    with pytest.raises(ValueError, match=missing):
        LocalTrainingProducts(client.replay, [one], vmapped=True)


def test_one_image_is_the_batch_whatever_was_announced():
    client = Client(tiny.mlp, 1, replace(PLAIN, batch_size=None), [(0,)] * 4)
    assert LocalTraining.announced(client.observations[0]).batches == ((0, 1),) * 4
    epochs = replace(client.observations[0], protocol=replace(PLAIN, local_steps=None, local_epochs=3, batch_size=None))
    assert LocalTraining.announced(epochs).batches == ((0, 1),) * 3


def test_a_gradient_is_no_local_training():
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    assert why_not_unrolled(tiny.observe(victim, tiny.images(spec, 1), [0])) == because("one-gradient")


@pytest.mark.parametrize("vmapped", [False, True])
def test_products_of_some_victims(vmapped):
    one = Client(
        tiny.mlp,
        *CASES["two passes of two batches"][:1],
        PLAIN,
        CASES["two passes of two batches"][2],
        victims=3,
        restarts=2,
    )
    products = LocalTrainingProducts(one.replay, one.observations, vmapped=vmapped)
    with torch.no_grad():
        whole = products(one.candidates, one.guesses, one.eps)
        some = products.keep([2, 0])(one.candidates[[2, 0]], one.guesses[[2, 0]], one.eps)
    torch.testing.assert_close(some.inner, whole.inner[[2, 0]], atol=1e-12, rtol=0)
    torch.testing.assert_close(some.target, whole.target[[2, 0]], atol=0, rtol=0)
