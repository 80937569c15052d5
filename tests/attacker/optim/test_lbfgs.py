"""Batched L-BFGS solves what L-BFGS should, one candidate like many, and freezes what is done, stuck or not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attacker.gradients.base import Products
from attacker.gradients.distances import squared_distance
from attacker.optim.lbfgs import LBFGS
from tests.attacker.known_minima import Plain

SEARCH = LBFGS(iterations=600, learning_rate=1.0, history=100)


def start(numbers: int, *, victims: int = 2, restarts: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(victims, restarts, numbers, generator=generator, dtype=torch.float64)


class Quadratic(Plain):
    """Half of (x - goal) A (x - goal) with condition number 1e5, the same for all candidates."""

    def __init__(self, numbers: int = 20, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(numbers, numbers, generator=generator, dtype=torch.float64))
        self._matrix = basis @ torch.diag(torch.logspace(0, 5, numbers, dtype=torch.float64)) @ basis.T
        self.goal = torch.randn(numbers, generator=generator, dtype=torch.float64)
        super().__init__(self.value)

    def value(self, x: Tensor) -> Tensor:
        error = x - self.goal
        values: Tensor = 0.5 * (error @ self._matrix * error).sum(-1)
        return values


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


@pytest.mark.parametrize("seed", range(3))
def test_ill_conditioned_quadratics_are_solved_and_the_work_stops(seed):
    bowl = Quadratic(seed=seed)
    found = SEARCH.run(bowl, start(20, seed=seed))
    torch.testing.assert_close(found.candidates, bowl.goal.expand_as(found.candidates), atol=1e-10, rtol=0)
    # Looked at every ten evaluations; those that are done meanwhile cost at most as many.
    assert int(found.iterations.max()) <= len(bowl.seen) - 1 < int(found.iterations.max()) + 11 < SEARCH.iterations
    assert not bool(found.diverged.any())


@pytest.mark.parametrize("history", [2, 5, 100])
def test_rosenbrock_is_solved_with_any_history(history):
    found = replace(SEARCH, history=history).run(Plain(rosenbrock), start(2))
    torch.testing.assert_close(found.candidates, torch.ones_like(found.candidates), atol=1e-8, rtol=0)


@pytest.mark.parametrize("history", [3, 100])
def test_each_candidate_goes_as_if_it_were_alone(history):
    search = replace(SEARCH, iterations=60, history=history)
    together = search.run(Plain(rosenbrock), start(4))
    for victim in range(2):
        for restart in range(3):
            alone = search.run(Plain(rosenbrock), start(4)[victim : victim + 1, restart : restart + 1])
            torch.testing.assert_close(alone.distances[0, 0], together.distances[victim, restart], atol=1e-9, rtol=1e-5)
            torch.testing.assert_close(
                alone.candidates[0, 0], together.candidates[victim, restart], atol=1e-6, rtol=1e-5
            )


def test_the_direction_is_that_of_the_two_loop_recursion():
    # torch's own L-BFGS from the same start, whose first trials all fit, does the same steps.
    bowl, other = Quadratic(6), Quadratic(6)
    x = (other.goal + 1e-3 * start(6)[0, 0]).requires_grad_(True)
    first = x.detach().clone()
    peer = torch.optim.LBFGS([x], lr=1.0, max_iter=60, history_size=4, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        peer.zero_grad()
        value = other.value(x)
        value.backward()
        return value

    peer.step(closure)
    found = replace(SEARCH, history=4).run(bowl, first.reshape(1, 1, 6))
    assert float(found.distances) <= float(other.value(x.detach())) + 1e-15


def test_the_iterate_kept_is_the_best_that_was_measured():
    bowl = Quadratic()
    found = replace(SEARCH, iterations=40).run(bowl, start(20))
    recorded = torch.stack([values for _, values in bowl.seen])
    assert len(bowl.seen) == 41
    assert torch.equal(found.distances, recorded.min(dim=0).values)
    assert torch.equal(bowl.value(found.candidates), found.distances)


def test_values_that_are_not_finite_shorten_the_step_and_spoil_no_other():
    def walled(x: Tensor) -> Tensor:
        values = (x - 3).square().sum(-1)
        return torch.where(x.sum(-1) > 1, torch.nan, values)

    found = SEARCH.run(Plain(walled), torch.full((1, 1, 2), -5.0, dtype=torch.float64))
    assert bool(found.candidates.isfinite().all())
    assert 0.9 < float(found.candidates.sum()) <= 1
    assert int(found.iterations) < SEARCH.iterations
    assert bool(found.diverged.all())  # the search ended at the wall


def test_a_start_that_is_not_finite_is_frozen_and_the_others_go_on():
    origin = start(20)
    origin[:, 0] = torch.nan
    bowl = Quadratic()
    found = SEARCH.run(bowl, origin)
    assert found.diverged.tolist() == [[True, False, False]] * 2
    assert bool(found.distances[:, 0].isinf().all())
    torch.testing.assert_close(found.candidates[:, 1:], bowl.goal.expand(2, 2, 20), atol=1e-10, rtol=0)
    assert bool((found.best_restart() > 0).all())
    nothing = SEARCH.run(bowl, torch.full_like(origin, torch.nan))
    assert bool(nothing.diverged.all())


def test_a_candidate_that_is_done_stays_where_it_is():
    bowl = Quadratic()
    origin = start(20)
    origin[0, 0] = bowl.goal
    found = SEARCH.run(bowl, origin)
    assert torch.equal(found.candidates[0, 0], bowl.goal)
    assert int(found.iterations[0, 0]) == 1
    # Its victim has other restarts, and needs as many places as the other victim has restarts at work.
    assert all(torch.equal(x[0, 0], bowl.goal) for x, _ in bowl.seen if x.shape[:2] == (2, 3))
    assert float(found.distances[0, 0]) == 0
    assert not bool(found.diverged.any())


@pytest.mark.parametrize("changed", [{"learning_rate": 0.3}, {"history": 3}, {"iterations": 20}], ids=str)
def test_every_setting_changes_the_search(changed):
    search = replace(SEARCH, iterations=30)
    one, other = (s.run(Quadratic(), start(20)) for s in (search, replace(search, **changed)))
    assert not torch.equal(one.candidates, other.candidates)


def test_progress_grows_to_one():
    seen: list[tuple[float, float | None]] = []
    SEARCH.run(Quadratic(), start(20), progress=lambda done, best: seen.append((done, best)))
    shares, best = zip(*seen, strict=True)
    assert list(shares) == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert list(best) == sorted(best, reverse=True)


def test_squared_distance_is_that_of_the_gradients():
    generator = torch.Generator().manual_seed(0)
    g, target = (torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    target = target[:, :1]
    products = Products((g * target).sum(-1), g.square().sum(-1), target.square().sum(-1).squeeze(1))
    torch.testing.assert_close(squared_distance(products), (g - target).square().sum(-1))
