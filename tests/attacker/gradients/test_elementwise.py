"""Distances over single elements of the gradient equal their formulas by plain double backward."""

from __future__ import annotations

import logging
from itertools import product

import pytest
import torch
from torch import Tensor

from attacker.gradients.base import GradientProducts
from attacker.gradients.distances import DISTANCES, ELEMENTWISE, Elements, absolute_distance, cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.ghost import convolution
from attacker.gradients.ghost.ghost import FactoredProducts
from attacker.gradients.one_step import ElementwiseProducts, elementwise_products
from attacker.gradients.replay import Replay
from tests.attacker.gradients.test_products import TOLERANCE, Problem
from tests.attacker.replay_models import DENSE, FACTORED, LOOP
from tests.oracles import loop_gradient

MODELS = {
    name: {**FACTORED, **DENSE, **LOOP}[name]
    for name in (
        "mlp",
        "convnet with bottleneck",
        "conv groups",
        "tokens",
        "batch norm of features",
        "mixing",
        "layer norm",
        "class token and positions",
    )
}


def pruned(problem: Problem, share: float = 0.7) -> None:
    """Zero a share of every observed gradient, other elements for each victim."""
    problem.targets = [
        {name: value * (torch.rand_like(value) >= share) for name, value in one.items()} for one in problem.targets
    ]


def by_formula(name: str, g: Tensor, target: Tensor) -> Tensor:
    base = name.removesuffix("-kept")
    if name.endswith("-kept"):
        sent = target != 0
        g, target = g[sent], target[sent]
    if base == "signs":
        return 1 - (g * target.sign()).sum() / g.abs().sum()
    if base == "l1-direction":
        g = g / g.norm() * target.norm()
    if base == "cosine":
        return 1 - (g * target).sum() / (g.norm() * target.norm())
    different = (g - target).abs().sum() if base.startswith("l1") else (g - target).square().sum()
    if base in ("l1", "l2"):
        return different
    return different / (target.abs().sum() if base.startswith("l1") else target.square().sum())


def oracle(problem: Problem, name: str, matched: list[str]) -> Tensor:
    rows = []
    for v, target in enumerate(problem.targets):
        for r in range(problem.candidates.shape[1]):
            found = loop_gradient(
                problem.victim,
                problem.parameters,
                problem.candidates[v, r],
                problem.labels[v, r],
                [value[v, r] for value in problem.noise],
            )
            g, wanted = (torch.cat([one[key].flatten() for key in matched]) for one in (found, target))
            rows.append(by_formula(name, g, wanted))
    return torch.stack(rows).reshape(problem.candidates.shape[:2])


def check(problem: Problem, name: str, products: GradientProducts, matched: list[str] | None = None) -> None:
    slow = oracle(problem, name, matched or list(problem.parameters))
    weights = torch.rand_like(slow)
    (slow_gradient,) = torch.autograd.grad((weights * slow).sum(), problem.candidates)
    fast = DISTANCES[name](products(problem.candidates, problem.labels, problem.noise))
    (fast_gradient,) = torch.autograd.grad((weights * fast).sum(), problem.candidates)
    torch.testing.assert_close(fast, slow, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(fast_gradient, slow_gradient, atol=TOLERANCE, rtol=TOLERANCE)


def choose(problem: Problem, name: str, matched: list[str] | None = None) -> GradientProducts:
    assert ELEMENTWISE.keys() <= DISTANCES.keys()
    return elementwise_products(
        problem.replay,
        problem.targets,
        problem.seen,
        batch_size=problem.batch,
        elements=ELEMENTWISE[name],
        matched=matched,
    )


USUAL = ("l1", "cosine-kept", "l2-kept")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("model", "name"),
    [*product(MODELS, USUAL), *(("mlp", name) for name in sorted(ELEMENTWISE.keys() - {*USUAL}))],
)
def test_the_chosen_path_equals_the_formula(model, name, batch):
    problem = Problem(MODELS[model], victims=2, restarts=2, batch=batch)
    pruned(problem)
    products = choose(problem, name)
    assert isinstance(products, FactoredProducts) == (model in FACTORED and ELEMENTWISE[name] == Elements(kept=True))
    check(problem, name, products)


@pytest.mark.parametrize("constant", ["_LARGE", "_GRAM_COST"])
@pytest.mark.parametrize("model", ["convnet", "conv groups", "conv few places", "residual with batch norm"])
def test_kept_elements_of_large_convolutions(model, constant, monkeypatch):
    monkeypatch.setattr(convolution, constant, 0)
    problem = Problem(FACTORED[model], victims=2, restarts=2, batch=1)
    pruned(problem)
    products = FactoredProducts(
        problem.replay, problem.targets, problem.seen, batch_size=1, matched=list(problem.parameters), kept=True
    )
    check(problem, "cosine-kept", products)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("model", ["mlp", "convnet with bottleneck"])
def test_factored_kept_elements_of_victims_that_leave(model, batch):
    problem = Problem(FACTORED[model], victims=3, restarts=2, batch=batch)
    pruned(problem)
    order, whole = [2, 0], choose(problem, "cosine-kept")
    noise = [value[order] for value in problem.noise]
    some = whole.keep(order)(problem.candidates[order], problem.labels[order], noise)
    for value, wanted in zip(some, whole(problem.candidates, problem.labels, problem.noise), strict=True):
        torch.testing.assert_close(value, wanted[order], atol=1e-10, rtol=1e-10)


def test_float32_resolves_the_distance_of_kept_elements_near_the_solution():
    problem = Problem(FACTORED["mlp"], victims=4, restarts=1, batch=1)
    problem.victim.model.float()
    weights = {name: value.float() for name, value in problem.parameters.items()}
    x = problem.candidates.detach().float()
    problem.targets = [
        {name: g.detach() for name, g in loop_gradient(problem.victim, weights, x[v, 0], labels[0]).items()}
        for v, labels in enumerate(problem.labels)
    ]
    pruned(problem)
    products = FactoredProducts(
        Replay(problem.victim, weights, {}), problem.targets, problem.seen, batch_size=1, kept=True
    )
    with torch.no_grad():
        distance = cosine_distance(products(x, problem.labels))
    assert distance.dtype == torch.float64
    assert float(distance.abs().max()) < 1e-7


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("at_once", [True, False])
def test_some_parameters_alone(name, at_once):
    problem = Problem(FACTORED["convnet with bottleneck"], victims=2, restarts=1, batch=2)
    pruned(problem)
    matched = list(problem.parameters)[1:4]
    products = ElementwiseProducts(
        problem.replay, problem.targets, elements=ELEMENTWISE[name], at_once=at_once, matched=matched
    )
    check(problem, name, products, matched)
    check(problem, name, choose(problem, name, matched), matched)


@pytest.mark.parametrize("at_once", [True, False])
def test_weights_of_each_victim_and_victims_that_leave(at_once):
    problem = Problem(FACTORED["mlp"], victims=3, restarts=2, batch=1)
    pruned(problem)
    others = [
        Replay(problem.victim, {name: torch.randn_like(w) for name, w in problem.parameters.items()}, {})
        for _ in range(3)
    ]
    whole = ElementwiseProducts(others, problem.targets, elements=Elements(kept=True), at_once=at_once)
    order = [2, 0]
    some = whole.keep(order)(problem.candidates[order], problem.labels[order])
    for place, v in enumerate(order):
        alone = ElementwiseProducts([others[v]], [problem.targets[v]], elements=Elements(kept=True), at_once=False)
        wanted = alone(problem.candidates[v : v + 1], problem.labels[v : v + 1])
        torch.testing.assert_close(some.inner[place], wanted.inner[0], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(some.square[place], wanted.square[0], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(some.absolute[place], wanted.absolute[0], atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(some.target[place], wanted.target[0], atol=1e-10, rtol=1e-10)


def test_vmap_is_taken_only_where_it_is_right(caplog):
    with caplog.at_level(logging.DEBUG, logger="attacker.gradients.select"):
        choose(Problem(MODELS["batch norm of features"], victims=1, restarts=1, batch=1), "l1")
        assert not caplog.messages
        choose(Problem(MODELS["layer norm"], victims=1, restarts=1, batch=1), "l1")
    assert "second derivative differs" in caplog.text


def test_without_zeros_in_the_update_all_elements_are_kept():
    problem = Problem(FACTORED["mlp"], victims=1, restarts=2, batch=1)
    kept = choose(problem, "cosine-kept")(problem.candidates, problem.labels)
    every = LoopProducts(problem.replay, problem.targets)(problem.candidates, problem.labels)
    for value, wanted in zip(kept, every, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-10, rtol=1e-10)


def test_inner_products_do_not_give_absolute_differences():
    problem = Problem(FACTORED["mlp"], victims=1, restarts=1, batch=1)
    products = LoopProducts(problem.replay, problem.targets)(problem.candidates, problem.labels)
    with pytest.raises(TypeError, match="elementwise_products"):
        absolute_distance(products)


def test_a_frozen_candidate_needs_no_graph():
    problem = Problem(FACTORED["mlp"], victims=1, restarts=1, batch=1)
    for at_once in (True, False):
        products = ElementwiseProducts(problem.replay, problem.targets, elements=Elements(), at_once=at_once)
        with torch.no_grad():
            assert not absolute_distance(products(problem.candidates, problem.labels)).requires_grad
