"""Searches say where their distances began and whether they still fell at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.attacks.closed_form.first_layer import FirstLayerInversion
from attacker.attacks.gradient_matching import parts
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.optim.first_order import Descent
from attacker.optim.lbfgs import LBFGS
from tests.attacker import tiny
from tests.attacker.known_minima import Bowl, Plain

SLOW = Descent(iterations=200, learning_rate=0.01, signed=True, schedule="constant")
AT = torch.tensor([[3.5, -1.0, 0.0], [2.0, 5.0, 4.0]], dtype=torch.float64).reshape(2, 3, 1, 1, 1, 1)


def expected_late_fall(bowl: Bowl, moment: int) -> torch.Tensor:
    best = torch.stack([values for _, values in bowl.seen]).cummin(dim=0).values
    return (best[moment] - best[-1]) / best[moment]


def test_the_start_and_the_late_fall_are_those_that_were_measured():
    bowl = Bowl()
    found = SLOW.run(bowl, AT)
    assert torch.equal(found.starts, bowl.seen[0][1])
    assert torch.equal(found.late_falls, expected_late_fall(bowl, 180))
    assert found.late_falls[0].min() >= 0
    assert found.late_falls[0, 1] > 0.05  # 2 of 4 units of way in 200 steps: still on its way


def test_a_search_that_arrived_early_no_longer_falls():
    found = replace(SLOW, learning_rate=0.2, schedule="step").run(Bowl(), AT)
    assert float(found.late_falls.abs().max()) < 0.5
    solved = LBFGS(iterations=60, learning_rate=1.0, history=5, plateau=10).run(Bowl(slopes=torch.ones(2, 3)), AT)
    assert torch.equal(solved.starts, Bowl().distances(AT))
    assert bool((solved.late_falls.nan_to_num(nan=0.0) <= 1).all())


def test_candidates_that_leave_keep_their_own_clock():
    # The first victim begins at its goals.
    goals = torch.tensor([[3.5, -1.0, 0.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    together = SLOW.run(Bowl(goals=goals), AT, stop_below=1e-9)
    alone = SLOW.run(Bowl(goals=goals[1:]), AT[1:], stop_below=1e-9)
    assert together.iterations[0].tolist() == [0, 0, 0]
    assert torch.equal(together.late_falls[1:], alone.late_falls)
    assert not bool(together.late_falls[0].any())  # nothing was left to fall


def test_climbing_does_not_look_like_falling():
    found = SLOW.run(Plain(lambda x: 1 - (x - 3).square().flatten(2).mean(dim=2) / 100), AT[:, :1] * 0 + 3)
    assert float(found.starts[0, 0]) == 1.0
    stuck = SLOW.run(Plain(lambda x: (0 * x).flatten(2).mean(dim=2) + 0.5), AT)
    assert torch.equal(stuck.starts, stuck.distances)
    assert float(stuck.late_falls.abs().max()) == 0.0


def test_a_start_that_is_not_finite_is_not_known():
    found = SLOW.run(Bowl(broken=(0,)), AT)
    assert bool(found.starts[:, 0].isinf().all() | found.starts[:, 0].isnan().all())
    assert bool(found.starts[:, 1:].isfinite().all())


SEARCHES = {
    "adam": GradientMatching().with_options(iterations=60, restarts=2),
    "l-bfgs": GradientMatching(optimiser=parts.LBFGS(iterations=60, history=5), priors=(), restarts=parts.Restarts(2)),
}


@pytest.mark.parametrize("attack", SEARCHES.values(), ids=SEARCHES)
def test_results_of_gradient_matching_carry_what_the_kept_restart_did(attack, generator):
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    (found,) = attack(
        victim,
        [tiny.observe(victim, tiny.images(spec, 1), [1])],
        generator=generator,
        labels=[torch.tensor([1])],
    )
    assert found.starts == 2
    assert found.matching_loss is not None
    assert found.starting_loss is not None
    assert found.late_fall is not None
    assert found.matching_loss < 0.1 * found.starting_loss
    assert found.late_fall <= 1


def test_an_analytic_attack_has_neither(generator):
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    (found,) = FirstLayerInversion()(victim, [tiny.observe(victim, tiny.images(spec, 1), [1])], generator=generator)
    assert (found.starting_loss, found.late_fall, found.starts) == (None, None, 0)
