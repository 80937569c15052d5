"""Victims with weights of their own in one batch equal each victim alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacker.gradients.base import GradientProducts
from attacker.gradients.distances import cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.ghost.ghost import FactoredProducts
from attacker.gradients.one_step import DenseProducts, gradient_products, weights_pay
from attacker.gradients.replay import Replay
from tests.attacker.gradients.test_products import TOLERANCE, Problem
from tests.attacker.replay_models import DENSE, FACTORED, LOOP
from tests.oracles import loop_cosine_distance


def own_weights(problem: Problem) -> list[Replay]:
    return [
        Replay(problem.victim, {name: torch.randn_like(w) for name, w in problem.parameters.items()}, {})
        for _ in problem.targets
    ]


def check(problem: Problem, kind: type | None) -> None:
    replays = own_weights(problem)
    products: GradientProducts
    if kind is None:
        products = gradient_products(replays, problem.targets, problem.seen, batch_size=problem.batch)
    elif kind is FactoredProducts:
        products = FactoredProducts(replays, problem.targets, problem.seen, batch_size=problem.batch)
    else:
        products = kind(replays, problem.targets)
    rows = [
        loop_cosine_distance(
            problem.victim,
            replay.parameters,
            problem.targets[v : v + 1],
            problem.candidates[v : v + 1],
            problem.labels[v : v + 1],
            [value[v : v + 1] for value in problem.noise],
        )
        for v, replay in enumerate(replays)
    ]
    slow = torch.cat(rows)
    weights = torch.rand_like(slow)
    (slow_gradient,) = torch.autograd.grad((weights * slow).sum(), problem.candidates)
    fast = cosine_distance(products(problem.candidates, problem.labels, problem.noise))
    (fast_gradient,) = torch.autograd.grad((weights * fast).sum(), problem.candidates)
    torch.testing.assert_close(fast, slow, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(fast_gradient, slow_gradient, atol=TOLERANCE, rtol=TOLERANCE)
    last_first = list(reversed(range(len(replays))))
    few = products.keep(last_first)(
        problem.candidates[last_first], problem.labels[last_first], [value[last_first] for value in problem.noise]
    )
    torch.testing.assert_close(cosine_distance(few), slow[last_first], atol=TOLERANCE, rtol=TOLERANCE)
    assert not any("forward" in module.__dict__ for module in problem.victim.model.modules())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # the odd pixel is wanted here
@pytest.mark.parametrize("name", FACTORED)
@settings(max_examples=2, deadline=None)
@given(victims=st.integers(1, 3), restarts=st.integers(1, 2), batch=st.integers(1, 2), seed=st.integers(0, 999))
def test_factored_with_weights_of_each_victim(name, victims, restarts, batch, seed):
    check(Problem(FACTORED[name], victims=victims, restarts=restarts, batch=batch, seed=seed), FactoredProducts)


@pytest.mark.parametrize("name", ["mixing", "twice"])
@pytest.mark.parametrize("kind", [DenseProducts, LoopProducts])
def test_slow_paths_with_weights_of_each_victim(name, kind):
    check(Problem(DENSE[name], victims=2, restarts=2, batch=2), kind)


@pytest.mark.parametrize("name", ["residual with batch norm", "mixing", "branching"])
def test_the_chosen_products_take_weights_of_each_victim(name):
    build = {**FACTORED, **DENSE, **LOOP}[name]
    problem = Problem(build, victims=3, restarts=1, batch=2)
    check(problem, None)
    chosen = gradient_products(own_weights(problem), problem.targets, problem.seen, batch_size=2)
    kinds = {"residual with batch norm": FactoredProducts, "mixing": DenseProducts, "branching": LoopProducts}
    assert type(chosen) is kinds[name]


@pytest.mark.parametrize(("name", "pays"), [("convnet", True), ("norms", True), ("twice", False), ("branching", False)])
def test_weights_of_each_victim_pay_where_products_are_factored(name, pays):
    problem = Problem({**FACTORED, **DENSE, **LOOP}[name], victims=1, restarts=1, batch=1)
    assert weights_pay(problem.victim.model, problem.seen) == pays


@pytest.mark.parametrize("name", ["residual with batch norm", "norms", "batch norm of features"])
@pytest.mark.parametrize("same_weights", [True, False])
def test_running_statistics_of_each_victim(name, same_weights):
    problem = Problem(FACTORED[name], victims=2, restarts=2, batch=2)
    layers = {run.name for run in problem.seen.layers}
    statistics = {
        key: value
        for key, value in problem.victim.model.named_buffers()
        if key.rpartition(".")[0] in layers and value.is_floating_point()
    }
    replays = [
        Replay(
            problem.victim,
            problem.parameters if same_weights else own.parameters,
            {key: value + torch.rand_like(value) for key, value in statistics.items()},
        )
        for own in own_weights(problem)
    ]
    fast = FactoredProducts(replays, problem.targets, problem.seen, batch_size=2)
    slow = LoopProducts(replays, problem.targets)
    for products, other, first in ((fast, slow, 0), (fast.keep([1, 0]).keep([0]), slow.keep([1]), 1)):
        candidates, labels = problem.candidates[first:], problem.labels[first:]
        distances = [cosine_distance(one(candidates, labels)) for one in (products, other)]
        torch.testing.assert_close(*distances, atol=TOLERANCE, rtol=TOLERANCE)
        gradients = [torch.autograd.grad(one[0, 0], problem.candidates)[0] for one in distances]
        torch.testing.assert_close(*gradients, atol=TOLERANCE, rtol=TOLERANCE)


def test_the_number_of_replays_must_fit():
    problem = Problem(FACTORED["mlp"], victims=2, restarts=1, batch=1)
    with pytest.raises(ValueError, match="one for each of 2 victims, got 1"):
        LoopProducts([problem.replay], problem.targets)


def test_unequal_buffers_are_refused_where_all_victims_pass_the_model_together():
    problem = Problem(FACTORED["mlp"], victims=2, restarts=1, batch=1)
    other = Replay(problem.victim, problem.parameters, {"mean": torch.ones(1)})
    with pytest.raises(ValueError, match="equal buffers"):
        FactoredProducts([problem.replay, other], problem.targets, problem.seen, batch_size=1)
