"""Victims with weights of their own in one batch equal each victim alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacker.engine import DenseProducts, FactoredProducts, LoopProducts, Replay, cosine_distance
from tests.attacker.replay_models import DENSE, FACTORED
from tests.attacker.test_engine_products import TOLERANCE, Problem
from tests.oracles import loop_cosine_distance


def check(problem: Problem, kind: type) -> None:
    replays = [
        Replay(problem.victim, {name: torch.randn_like(w) for name, w in problem.parameters.items()}, {})
        for _ in problem.targets
    ]
    if kind is FactoredProducts:
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


@pytest.mark.parametrize("name", ["batch norm", "twice"])
@pytest.mark.parametrize("kind", [DenseProducts, LoopProducts])
def test_slow_paths_with_weights_of_each_victim(name, kind):
    check(Problem(DENSE[name], victims=2, restarts=2, batch=2), kind)


def test_the_number_of_replays_must_fit():
    problem = Problem(FACTORED["mlp"], victims=2, restarts=1, batch=1)
    with pytest.raises(ValueError, match="one for each of 2 victims, got 1"):
        LoopProducts([problem.replay], problem.targets)


def test_unequal_buffers_are_refused_where_all_victims_pass_the_model_together():
    problem = Problem(FACTORED["mlp"], victims=2, restarts=1, batch=1)
    other = Replay(problem.victim, problem.parameters, {"mean": torch.ones(1)})
    with pytest.raises(ValueError, match="equal buffers"):
        FactoredProducts([problem.replay, other], problem.targets, problem.seen, batch_size=1)
