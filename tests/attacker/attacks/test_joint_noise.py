"""Noise in the engine: searched beside the images, averaged over draws, known; and targets for features."""

from __future__ import annotations

import pytest
import torch

from attacker.gradients.distances import cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.observed import observed_gradient
from attacker.gradients.one_step import gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.objectives.feature_prior import FeatureTarget
from attacker.objectives.objective import BottleneckNoise, GradientObjective
from attacker.optim.first_order import Companions, Descent
from attacker.optim.random_streams import Draws
from attacker.victim import Victim
from fl_precode import sample_noise
from tests.attacker import tiny
from tests.attacker.bottlenecked import (
    SPEC,
    Shortcut,
    both_kinds,
    client,
    convolutional,
    normal,
    spread,
    two_bottlenecks,
)
from tests.attacker.known_minima import Plain
from tests.attacker.members import victim_of
from tests.oracles import loop_cosine_distance

VICTIMS = {
    "mlp": lambda: victim_of(bottleneck=True),
    "two": two_bottlenecks,
    "convolutional": convolutional,
    "both kinds": both_kinds,
    "shortcut": lambda: Victim(model=spread(Shortcut()), inputs=SPEC),
}


def noises(victim, *axes, seed=3):
    return [normal(*axes, *latent, seed=seed + place) for place, latent in enumerate(trace(victim).latents)]


@pytest.mark.parametrize("name", VICTIMS)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_gradient_with_respect_to_noise_is_that_of_the_loop(name, batch):
    victim = VICTIMS[name]()
    seen = trace(victim)
    clients = [
        client(victim, tiny.images(SPEC, batch, seed=v), [v, 3][:batch], noises(victim, batch, seed=10 * v))
        for v in range(2)
    ]
    targets = [observed_gradient(one) for one in clients]
    replay = Replay(victim, clients[0].parameters, {})
    x = normal(2, 3, batch, *SPEC.shape, seed=8).requires_grad_(True)
    eps = [one.requires_grad_(True) for one in noises(victim, 2, 3, batch, seed=20)]
    labels = torch.tensor([[[0, 3][:batch]], [[1, 2][:batch]]])
    products = gradient_products(replay, targets, seen, batch_size=batch)
    found = cosine_distance(products(x, labels, eps))
    every = labels.expand(2, 3, batch)
    expected = loop_cosine_distance(victim, clients[0].parameters, targets, x, every, eps)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad(found.sum(), [x, *eps]), torch.autograd.grad(expected.sum(), [x, *eps]), strict=True
    ):
        assert float((one - other).abs().max()) < 1e-8 * float(other.abs().max())


def objective(victim, seen, observations, *, restarts=2, average=1, known=()):
    replay = Replay(victim, observations[0].parameters, {})
    draws = Draws.seeded(len(observations), restarts, torch.Generator().manual_seed(4))
    return GradientObjective(
        products=LoopProducts(replay, [observed_gradient(one) for one in observations]),
        measure=cosine_distance,
        labels=torch.zeros(len(observations), 1, 1, dtype=torch.long),
        noise=BottleneckNoise(draws=draws, batch=1, latents=seen.latents, average=average, known=known),
    )


def test_several_draws_give_the_mean_of_their_distances():
    victim = victim_of(tiny.convnet, bottleneck=True)
    seen = trace(victim)
    both = [client(victim, tiny.images(SPEC, 1, seed=v), [0], noises(victim, 1, seed=v)) for v in range(2)]
    x = normal(2, 2, 1, *SPEC.shape)
    found = objective(victim, seen, both, average=3).distances(x)
    draws = Draws.seeded(2, 2, torch.Generator().manual_seed(4)).normal(3, 5, like=x)
    each = [
        [
            loop_cosine_distance(
                victim,
                both[v].parameters,
                [both[v].update],
                x[v, r].expand(1, 3, 1, *SPEC.shape),
                torch.zeros(1, 3, 1, dtype=torch.long),
                [draws[v, r].reshape(1, 3, 1, 5)],
            )
            .mean()
            .detach()
            .item()
            for r in range(2)
        ]
        for v in range(2)
    ]
    assert torch.allclose(found, torch.tensor(each, dtype=torch.float64), rtol=0, atol=1e-12)
    kept = objective(victim, seen, both, average=3).keep([1], [[1]])
    assert torch.allclose(kept.distances(x[1:, 1:]), found[1:, 1:], rtol=0, atol=1e-12)
    once = objective(victim, seen, both, average=3)
    once = GradientObjective(
        products=once.products, measure=once.measure, labels=once.labels, noise=once.noise.drawn_once(x)
    )
    assert torch.equal(once.distances(x), once.distances(x))
    assert torch.allclose(once.keep([1], [[1]]).distances(x[1:, 1:]), once.distances(x)[1:, 1:], rtol=0, atol=1e-12)


def test_known_noise_is_used_and_the_rest_is_drawn():
    victim = two_bottlenecks()
    seen = trace(victim)
    noise = noises(victim, 1)
    one = client(victim, tiny.images(SPEC, 1), [0], noise)
    x = tiny.images(SPEC, 1).expand(1, 2, 1, *SPEC.shape)
    exact = objective(victim, seen, [one], known=[value[None] for value in noise]).distances(x)
    assert float(exact.abs().max()) < 1e-12
    half = objective(victim, seen, [one], known=[noise[0][None], None])
    first, second = half.distances(x), half.distances(x)
    assert float(first.min()) > 1e-6
    assert not torch.equal(first, second)


def test_feature_targets_compare_what_enters_and_end_the_pass_there():
    victim = two_bottlenecks()
    noise = noises(victim, 1)
    seen = client(victim, tiny.images(SPEC, 1), [0], noise)
    replay = Replay(victim, seen.parameters, {})
    x = normal(2, 3, 1, *SPEC.shape).requires_grad_(True)
    targets = {"3": normal(2, 1, 32), "6": normal(2, 1, 12, seed=9)}
    stacked = [value.expand(2, *value.shape) for value in noise]
    prior = FeatureTarget([replay, replay], targets, stacked)
    found = prior(x)
    rows = []
    for v in range(2):
        for r in range(3):
            first = victim.model[:3](x[v, r])
            with sample_noise(values=noise[:1]):
                second = victim.model[3:6](first)
            rows.append(
                sum(
                    (f - targets[name][v]).square().sum() / targets[name][v].square().sum()
                    for name, f in (("3", first), ("6", second))
                )
            )
    expected = torch.stack(rows).reshape(2, 3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    (mine,), (theirs,) = torch.autograd.grad(found.sum(), x), torch.autograd.grad(expected.sum(), x)
    assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)
    assert torch.allclose(prior.keep([1], [[0, 2]])(x[1:, [0, 2]]), expected[1:, [0, 2]], rtol=0, atol=1e-12)
    own = FeatureTarget([replay, Replay(victim, seen.parameters, {})], targets, stacked)
    assert torch.allclose(own(x), expected, rtol=0, atol=1e-12)
    with torch.no_grad():  # layers behind the last target do not run
        alone = FeatureTarget([replay], {"3": targets["3"][:1]})
        assert torch.isfinite(alone(x[:1])).all()


def test_companions_move_by_plain_adam_at_a_rate_of_their_own():
    start = torch.zeros(1, 1, 3, dtype=torch.float64)
    slopes = torch.tensor([3.0, -5.0, 7.0], dtype=torch.float64)
    linear = Plain(lambda x: (x * slopes * x.new_tensor([1, 1, 1])).sum(dim=2))
    descent = Descent(iterations=1, learning_rate=0.1, schedule="constant")
    descent.run(linear, start, companions=Companions(first=1, learning_rate=0.25))
    moved = linear.seen[-1][0].flatten()
    assert moved.tolist() == pytest.approx([-0.1, 0.25, -0.25], rel=1e-6)
    # Adam's memory is of gradients there, and of signs for the images.
    changing = Plain(lambda x: torch.cat([x[..., :1].abs(), x[..., 1:] ** 2 * 4], dim=2).sum(dim=2))
    plain = Plain(lambda x: (x**2 * 4).sum(dim=2))
    far = torch.full((1, 1, 2), 2.0, dtype=torch.float64)
    both = Descent(iterations=9, learning_rate=0.1, schedule="constant").run(
        changing, far, companions=Companions(first=1, learning_rate=0.1)
    )
    alone = Descent(iterations=9, learning_rate=0.1, schedule="constant", signed=False).run(plain, far[..., 1:])
    assert torch.equal(both.candidates[..., 1:], alone.candidates)
