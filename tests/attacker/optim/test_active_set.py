"""Candidates that are finished leave the batch, and nobody's result depends on who else is or was in it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from attacker.optim.active_set import Survivors, take
from attacker.optim.early_stopping import PLATEAU_GAIN, Plateau, halving_rungs, worse_half
from attacker.optim.first_order import Descent
from attacker.optim.lbfgs import LBFGS
from attacker.optim.random_streams import Draws
from tests.attacker.known_minima import Bowl, Plain, Staying

VICTIMS, RESTARTS = 3, 4
DESCENT = Descent(iterations=240, learning_rate=0.1, signed=False, plateau=8)


def start(victims: int = VICTIMS, restarts: int = RESTARTS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(victims, restarts, 1, 1, 2, 2, generator=generator, dtype=torch.float64)


def goals() -> torch.Tensor:
    """Near and far ones, so that candidates finish at different times."""
    return torch.linspace(0.2, 9, VICTIMS * RESTARTS, dtype=torch.float64).reshape(VICTIMS, RESTARTS)[
        :, torch.randperm(RESTARTS, generator=torch.Generator().manual_seed(1))
    ]


def draws() -> Draws:
    return Draws.seeded(VICTIMS, RESTARTS, torch.Generator().manual_seed(0))


def descending(*, stop_below: float = 0.0, halving: int = 0, **changed):
    """A descent with other settings, and with limits."""
    return partial(replace(DESCENT, **changed).run, stop_below=stop_below, halving=halving)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"schedule": "constant"},
        {"schedule": "cosine", "warmup": 20},
        {"plateau": 0, "stop_below": 0.5},
        {"plateau": 0, "halving": 2},
        {"halving": 1, "stop_below": 1e-3, "langevin": 0.1},
    ],
    ids=str,
)
def test_leaving_changes_no_result(changed, monkeypatch):
    descend = descending(**changed)
    bowl = Bowl(goals=goals())
    together = descend(bowl, start(), draws=draws())
    assert bowl.sizes[0] == (VICTIMS, RESTARTS)
    assert bowl.sizes[-1] < (VICTIMS, RESTARTS), "someone has left"
    assert len(together.iterations.unique()) > 1
    monkeypatch.setattr(Survivors, "plan", lambda self, finished: None)
    stayed = descend(Bowl(goals=goals()), start(), draws=draws())
    for name in ("candidates", "distances", "diverged", "iterations"):
        assert torch.equal(getattr(together, name), getattr(stayed, name)), name


def test_a_candidate_that_left_on_its_last_plateau_gives_the_iterate_it_left_with():
    """It bounces around the goal, so that its last iterate is not its best."""
    settings = replace(DESCENT, signed=True, learning_rate=1.0, schedule="constant")
    bowl = Bowl(goals=goals())
    last = settings.run(bowl, start())
    best = replace(settings, iterate="best").run(Bowl(goals=goals()), start())
    assert bool((last.iterations < settings.iterations).all())
    assert torch.equal(last.iterations, best.iterations)
    assert bool((last.distances >= best.distances).all())
    assert bool((last.distances > best.distances).any())
    assert torch.equal(Bowl(goals=goals()).distances(last.candidates), last.distances)


@pytest.mark.parametrize("changed", [{}, {"langevin": 0.3}, {"halving": 2}, {"plateau": 0, "stop_below": 0.5}], ids=str)
def test_a_victim_goes_as_if_it_were_alone(changed):
    descend = descending(**changed)
    together = descend(Bowl(goals=goals()), start(), draws=draws())
    for victim in range(VICTIMS):
        bowl = Bowl(goals=goals()[victim : victim + 1])
        own = draws().keep([victim], [range(RESTARTS)])
        alone = descend(bowl, start()[victim : victim + 1], draws=own)
        assert torch.equal(alone.candidates[0], together.candidates[victim])
        assert torch.equal(alone.iterations[0], together.iterations[victim])


def test_work_shrinks_with_the_candidates():
    bowl = Bowl(goals=goals())
    found = DESCENT.run(bowl, start())
    work = sum(victims * restarts for victims, restarts in bowl.sizes)
    needed = int(found.iterations.sum())
    assert needed <= work < VICTIMS * RESTARTS * (DESCENT.iterations + 1)


def test_a_victim_is_solved_by_one_of_its_restarts():
    descent = replace(DESCENT, plateau=0, schedule="constant")
    found = descent.run(Bowl(goals=goals()), start(), stop_below=0.5)
    best = found.distances.min(dim=1).values
    solved = best < 0.5
    assert int(solved.sum()) > 0
    # All restarts of a victim end together, at the first measurement below the bound.
    assert bool((found.iterations == found.iterations[:, :1]).all())
    for victim in solved.nonzero().flatten().tolist():
        steps = int(found.iterations[victim, 0])
        shorter, longer = replace(descent, iterations=steps - 1), replace(descent, iterations=steps)
        rows = slice(victim, victim + 1)
        before, after = (d.run(Bowl(goals=goals()[rows]), start()[rows]).distances.min() for d in (shorter, longer))
        assert after < 0.5 <= before


def test_a_plateau_ends_a_stage_of_the_schedule_and_the_last_one_the_search():
    # Steps of 1 jump around the goal for ever; each fall of the rate comes closer.
    descent = Descent(iterations=4000, learning_rate=1.0, plateau=10)
    bowl = Bowl(goals=torch.tensor([[2.345]], dtype=torch.float64))
    found = descent.run(bowl, torch.zeros(1, 1, 1, 1, 1, 1, dtype=torch.float64))
    assert int(found.iterations) < 400
    steps = [float((b - a).abs().max()) for (a, _), (b, _) in zip(bowl.seen, bowl.seen[1:], strict=False)]
    assert max(steps[-8:]) < 5e-3 < 0.5 < max(steps[:5])
    constant = replace(descent, schedule="constant").run(
        Bowl(goals=torch.tensor([[2.345]], dtype=torch.float64)), torch.zeros(1, 1, 1, 1, 1, 1, dtype=torch.float64)
    )
    assert float(found.distances) < 1e-2 * float(constant.distances)


def test_a_plateau_is_a_gain_below_one_percent():
    losses = torch.tensor([[1.0, 1.0, 0.0, -1e-18]])
    plateau = Plateau(torch.full_like(losses, torch.inf), 2)
    assert not bool(plateau.reached(losses).any())
    slow, fast = 1 - 0.9 * PLATEAU_GAIN, 1 - 1.1 * PLATEAU_GAIN
    assert not bool(plateau.reached(losses * torch.tensor([slow, fast, 1, 1])).any())
    # Slow gains add up until they are one.
    assert plateau.reached(losses * torch.tensor([slow, fast, 1, 1])).tolist() == [[True, False, True, True]]
    assert plateau.reached(losses * torch.tensor([slow**2, fast, 1, 1])).tolist() == [[False, True, True, True]]
    fresh = torch.tensor([[True, True, True, False]])
    assert plateau.reached(losses * torch.tensor([slow**2, fast, 1, 1]), fresh).tolist() == [
        [False, False, False, True]
    ]
    never = Plateau(losses, 0)
    assert not any(bool(never.reached(losses).any()) for _ in range(5))


def test_halving_drops_the_worse_half_at_each_rung():
    assert halving_rungs(70, 2) == [10, 30]
    bowl = Bowl(goals=goals())
    found = replace(DESCENT, iterations=70, plateau=0).run(bowl, start(), halving=2)
    for row in found.iterations.tolist():
        assert sorted(row) == [10, 10, 30, 70]
    # Goals far away stay worse at equal steps: the nearest one is worked on to the end.
    assert torch.equal(
        found.iterations.argmax(dim=1), (goals().unsqueeze(2) - start().flatten(2)).abs().mean(2).argmin(1)
    )


def test_the_worse_half_is_among_those_that_work():
    distances = torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.5], [torch.inf, torch.inf, 1.0, torch.inf, 2.0]])
    finished = torch.tensor([[False, False, False, False, True], [False, False, False, True, True]])
    assert worse_half(distances, finished).tolist() == [
        [True, False, True, False, False],
        [False, True, False, False, False],  # of three one is dropped, the later of the two worst
    ]


def test_survivors_are_a_rectangle_that_finds_back():
    finished = torch.tensor([[True, True, True], [False, True, False], [True, True, False], [False, True, True]])
    survivors = Survivors(4, 3)
    cut = survivors.plan(finished)
    assert cut is not None
    assert cut.victims == [1, 2, 3]
    assert cut.restarts == [[0, 2], [0, 2], [0, 1]]
    survivors.keep(cut)
    again = survivors.plan(cut.take(finished) | torch.tensor([[True, False], [False, False], [False, False]]))
    assert again is not None
    assert again.restarts == [[1], [1], [0]]
    survivors.keep(again)
    whole = torch.zeros(4, 3)
    survivors.put(torch.tensor([[7.0], [8.0], [9.0]]), whole)
    assert whole.tolist() == [[0, 0, 0], [0, 0, 7], [0, 0, 8], [9, 0, 0]]
    assert Survivors(4, 3).plan(torch.zeros(4, 3, dtype=torch.bool)) is None
    assert Survivors(4, 3).plan(torch.ones(4, 3, dtype=torch.bool)) is None


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def test_l_bfgs_measures_only_who_is_at_work():
    generator = torch.Generator().manual_seed(0)
    origin = 2 * torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    origin[1] = 1.0  # the whole victim is at the minimum
    objective = Plain(rosenbrock)
    search = LBFGS(iterations=800, learning_rate=1.0, history=10)
    found = search.run(objective, origin)
    sizes = [x.shape[:2] for x, _ in objective.seen]
    assert sizes[0] == (3, 4)
    assert sizes[1] == (2, 4), "it has left before the first evaluation"
    assert sizes[-1] < (2, 4)
    assert found.iterations[1].tolist() == [1, 1, 1, 1]
    slow = search.run(Staying(Plain(rosenbrock), (3, 4)), origin)
    torch.testing.assert_close(found.candidates, slow.candidates, atol=1e-7, rtol=0)


@pytest.mark.parametrize("changed", [{"stop_below": 101.0}, {"plateau": 5}], ids=str)
def test_l_bfgs_stops_early(changed):
    generator = torch.Generator().manual_seed(0)
    origin = 2 * torch.randn(2, 2, 6, generator=generator, dtype=torch.float64)
    plain = LBFGS(iterations=800, learning_rate=1.0, history=10)
    objective = Plain(lambda x: 100 + rosenbrock(x))  # from 101 on no gain is one percent
    whole = plain.run(objective, origin)
    early = replace(plain, plateau=changed.get("plateau", 0)).run(
        objective, origin, stop_below=changed.get("stop_below", 0.0)
    )
    assert bool((early.iterations <= whole.iterations).all())
    assert int(early.iterations.sum()) < int(whole.iterations.sum())
    if "stop_below" in changed:
        assert bool((early.distances.min(dim=1).values < 101).all())
        assert bool((early.distances.min(dim=1).values > 100 + 1e-6).all())


def test_l_bfgs_minimises_priors_too_and_reports_the_distance_alone():
    class Pulled(Plain):
        def priors(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * x.square().sum(-1)

    origin = torch.full((1, 2, 3), 5.0, dtype=torch.float64)
    found = LBFGS(iterations=200, learning_rate=1.0, history=10).run(Pulled(lambda x: (x - 4).square().sum(-1)), origin)
    torch.testing.assert_close(found.candidates, torch.ones_like(origin))  # (x - 4)^2 + 3 x^2
    torch.testing.assert_close(found.distances, torch.full((1, 2), 27.0, dtype=torch.float64))


def test_take_is_indexing():
    values = torch.arange(24).reshape(3, 4, 2)
    assert take(values, [2, 0], [[1, 3], [0, 2]]).tolist() == [
        [[18, 19], [22, 23]],
        [[0, 1], [4, 5]],
    ]
