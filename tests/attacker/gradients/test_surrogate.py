"""Surrogate weights: every way equals double backward at the mixed weights, and their position is learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacker.gradients.distances import cosine_distance
from attacker.gradients.fedavg.surrogate import SurrogateProducts, surrogate_products
from attacker.gradients.fedavg.unrolled_sgd import LocalTrainingProducts
from attacker.gradients.observed import observed_gradient
from attacker.optim.first_order import Descent
from fl_precode import Protocol
from tests.attacker import tiny
from tests.attacker.gradients.test_unrolled_sgd import Client
from tests.attacker.known_minima import Plain
from tests.attacker.replay_models import DENSE, FACTORED, LOOP
from tests.oracles import loop_cosine_distance

TRAINING = Protocol(name="fedavg", local_steps=4, batch_size=2, learning_rate=0.5)
BATCHES = [(0, 1), (2, 3), (0, 1), (2, 3)]
WAYS = dict.fromkeys(FACTORED, "factored") | dict.fromkeys(DENSE, "vmap") | dict.fromkeys(LOOP, "loop")


def client(build, *, victims: int = 2, restarts: int = 2) -> Client:
    return Client(build, 4, TRAINING, BATCHES, victims=victims, restarts=restarts)


def oracle(one: Client, position: Tensor) -> Tensor:
    """Distances by plain double backward at the weights of each candidate, (victims, restarts)."""
    rows = []
    for v, observation in enumerate(one.observations):
        row = []
        for r in range(position.shape[1]):
            a = position[v, r]
            mixed = {
                name: a * value + (1 - a) * (value + observation.update[name])
                for name, value in observation.parameters.items()
            }
            place = (slice(v, v + 1), slice(r, r + 1))
            eps = [value[place] for value in one.eps]
            target = [observed_gradient(observation)]
            row.append(
                loop_cosine_distance(one.victim, mixed, target, one.candidates[place], one.guesses[place], eps)[0, 0]
            )
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # the odd pixel is wanted here
@pytest.mark.parametrize("name", WAYS)
def test_the_chosen_way_equals_double_backward_at_the_mixed_weights(name):
    one = client({**FACTORED, **DENSE, **LOOP}[name])
    chosen = surrogate_products(one.replay, one.observations, one.seen)
    assert isinstance(chosen, SurrogateProducts)
    assert chosen.way == WAYS[name]
    for _ in range(2):  # the second time with positions that were learned
        position = torch.full((2, 2), 0.5, dtype=torch.float64) if chosen.position is None else chosen.position.clone()
        slow = oracle(one, position)
        mix = torch.rand_like(slow)
        (slow_gradient,) = torch.autograd.grad((mix * slow).sum(), one.candidates)
        fast = cosine_distance(chosen(one.candidates, one.guesses, one.eps))
        (fast_gradient,) = torch.autograd.grad((mix * fast).sum(), one.candidates)
        torch.testing.assert_close(fast, slow, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(fast_gradient, slow_gradient, atol=1e-8, rtol=1e-8)
    assert not any("forward" in module.__dict__ for module in one.victim.model.modules())
    assert not any(module._forward_hooks for module in one.victim.model.modules())


@pytest.mark.parametrize("way", ["factored", "vmap", "loop"])
def test_every_candidate_moves_its_position_against_the_derivative(way):
    one = client(tiny.convnet)
    products = SurrogateProducts(one.replay, one.observations, one.seen, way=way, learning_rate=1e-4)
    half = torch.full((2, 2), 0.5, dtype=torch.float64)
    with torch.no_grad():
        slope = (oracle_value(one, half + 1e-4) - oracle_value(one, half - 1e-4)) / 2e-4
    distance = cosine_distance(products(one.candidates, one.guesses))
    assert torch.equal(products.position, half), "nothing moves before a derivative is asked for"
    torch.autograd.grad(distance.sum(), one.candidates)
    # Adam's first step is the learning rate, whatever the size of the derivative.
    torch.testing.assert_close(products.position, half - 1e-4 * slope.sign(), atol=1e-8, rtol=0)


def oracle_value(one: Client, position: Tensor) -> Tensor:
    with torch.enable_grad():
        return oracle(one, position).detach()


def test_measuring_and_a_rate_of_zero_move_nothing():
    one = client(tiny.convnet)
    products = SurrogateProducts(one.replay, one.observations, one.seen, way="factored")
    with torch.no_grad():
        products(one.candidates, one.guesses)
    fixed = SurrogateProducts(one.replay, one.observations, one.seen, way="factored", learning_rate=0.0)
    torch.autograd.grad(cosine_distance(fixed(one.candidates, one.guesses)).sum(), one.candidates)
    for one_of_both in (products, fixed):
        assert bool((one_of_both.position == 0.5).all())


def test_a_position_stays_between_the_weights_and_survives_a_candidate_that_is_lost():
    one = client(tiny.convnet)
    products = SurrogateProducts(one.replay, one.observations, one.seen, way="factored", learning_rate=5.0)
    lost = one.candidates.detach().clone()
    lost[0, 0] = torch.nan
    for start in (one.candidates.detach(), lost, one.candidates.detach()):
        x = start.clone().requires_grad_(True)
        torch.autograd.grad(cosine_distance(products(x, one.guesses)).sum(), x)
        assert bool(((products.position == 0) | (products.position == 1)).all())


def test_a_learned_position_matches_better_than_the_middle():
    """One large step on a curved loss: its direction is the gradient at w0, so that ``a`` belongs at 1."""
    one = Client(tiny.mlp, 2, Protocol(local_steps=1, batch_size=2, learning_rate=5.0), [(0, 1)], restarts=3)
    descent = Descent(iterations=150, learning_rate=0.1)
    found = {}
    for rate in (0.0, 0.02):
        products = SurrogateProducts(one.replay, one.observations, one.seen, way="factored", learning_rate=rate)
        labels = one.labels.unsqueeze(1)
        start = one.candidates.detach()
        matched = descent.run(
            Plain(lambda x, products=products, labels=labels: cosine_distance(products(x, labels))), start
        )
        found[rate] = matched.distances, products.position
    assert bool((found[0.02][0] < found[0.0][0]).all())
    assert bool((found[0.02][1] > 0.9).all())


@pytest.mark.parametrize("way", ["factored", "vmap", "loop"])
def test_candidates_that_stay_keep_their_position_and_go_on_learning(way):
    one = client(tiny.convnet, victims=2, restarts=3)
    products = SurrogateProducts(one.replay, one.observations, one.seen, way=way, learning_rate=0.1)

    def measure(of, x):
        candidates = x.detach().requires_grad_(True)
        labels = one.guesses if len(x) == 2 else one.guesses[1:, [2, 0]]
        distance = cosine_distance(of(candidates, labels, []))
        distance.sum().backward()
        return distance.detach()

    measure(products, one.candidates)
    kept = products.keep([1], [[2, 0]])
    few = one.candidates[1:, [2, 0]]
    torch.testing.assert_close(kept.position, products.position[1:, [2, 0]], atol=0, rtol=0)
    for _ in range(2):
        everyone = measure(products, one.candidates)
        torch.testing.assert_close(measure(kept, few), everyone[1:, [2, 0]], atol=1e-10, rtol=0)
    torch.testing.assert_close(kept.position, products.position[1:, [2, 0]], atol=1e-10, rtol=0)
    assert not torch.equal(kept.position[0], torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("way", ["factored", "vmap", "loop", "unrolled"])
def test_products_over_some_parameters_add_up(way):
    one = client(tiny.convnet)
    names = list(one.observations[0].parameters)

    def products(matched):
        if way == "unrolled":
            return LocalTrainingProducts(one.replay, one.observations, vmapped=True, matched=matched)
        return SurrogateProducts(one.replay, one.observations, one.seen, way=way, matched=matched)

    with torch.no_grad():
        whole, *parts = (products(some)(one.candidates, one.guesses, one.eps) for some in (None, names[:1], names[1:]))
    for total, first, rest in zip(whole, *parts, strict=True):
        torch.testing.assert_close(first + rest, total, atol=1e-12, rtol=1e-10)
        assert bool((first != 0).all())
