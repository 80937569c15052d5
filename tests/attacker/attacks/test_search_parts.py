"""Gradient matching composed of parts: what can be written, what specs make of it, and parts of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from attacker.attacks import PRESETS, GradientMatching, Outcome
from attacker.attacks.gradient_matching.options import OPTIONS, options_of
from attacker.attacks.gradient_matching.parts import (
    L1,
    L2,
    LBFGS,
    Adam,
    BNStatistics,
    Cosine,
    Grey,
    GroupConsistency,
    ImageNorm,
    Optimiser,
    Patterned,
    Prior,
    RacedTotalVariation,
    Restarts,
    Signs,
    SoftSign,
    TotalVariation,
    distance_named,
)
from attacker.gradients.distances import DISTANCES, ELEMENTWISE, SCALED, total_variation
from attacker.objectives import image_priors as priors
from attacker.optim.result import Matched
from tests.attacker import tiny

SPEC = tiny.inputs()
SMOOTH = GradientMatching(distance=L2(), optimiser=LBFGS(iterations=10), priors=[])


def attacked(search: GradientMatching):
    torch.manual_seed(0)
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    seen = tiny.observe(victim, tiny.images(SPEC, 1), [2])
    (found,) = search(victim, [seen], generator=torch.Generator().manual_seed(0))
    return found


def test_parts_and_options_say_the_same():
    parts = GradientMatching(
        distance=L1(scale="direction", kept=True, converged_below=0.2, stop_below=0.1),
        optimiser=Adam(iterations=20, signed=SoftSign(0.5), schedule="linear", warmup=3, langevin=0.1, iterate="best"),
        priors=[TotalVariation(0.3), ImageNorm(0.1), GroupConsistency(0.2, registered=True), BNStatistics(2.0)],
        init=Patterned(2),
        restarts=Restarts(4, halving=1),
        replay="surrogate",
        layers="conv*",
        memory=0.5,
    )
    assert parts == GradientMatching().with_options(
        distance="l1-direction-kept", converged_below=0.2, stop_below=0.1, iterations=20, sign_softness=0.5,
        schedule="linear", warmup=3, langevin=0.1, iterate="best", total_variation=0.3, image_norm=0.1,
        group_consistency=0.2, group_mean="registered", batch_norm=2.0, start="patterned-2", restarts=4, halving=1,
        local_training="surrogate", layers="conv*", memory=0.5,
    )  # fmt: skip
    assert hash(parts) == hash(replace(parts))


def test_the_options_are_those_of_the_attack_without_arguments():
    assert options_of(GradientMatching()) == OPTIONS


RACED = GradientMatching(priors=[RacedTotalVariation((1e-2, 1e-6), text="1e-2|1e-6")])


@pytest.mark.parametrize("attack", [*PRESETS.values(), SMOOTH, RACED], ids=lambda one: one.name)
def test_options_give_the_attack_they_were_read_from(attack):
    other = GradientMatching() if isinstance(attack.optimiser, LBFGS) else PRESETS["dlg"]
    assert attack.with_options(**options_of(attack)) == attack
    assert replace(other.with_options(**options_of(attack)), method=attack.method) == attack


@pytest.mark.parametrize("name", DISTANCES)
def test_every_distance_of_the_engine_is_a_part(name):
    found = distance_named(name, converged_below=0.5, stop_below=0.25)
    assert (found.name, found.converged_below, found.stop_below) == (name, 0.5, 0.25)
    assert found.measure is DISTANCES[name]
    assert found.elements == ELEMENTWISE.get(name)
    assert found.needs_scale == (name in SCALED)
    assert Cosine(converged_below=0.5, stop_below=0.25).named(name) == found


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        (LBFGS, {"signed": True}),
        (LBFGS, {"boxed": True}),
        (LBFGS, {"schedule": "cosine"}),
        (LBFGS, {"langevin": 0.1}),
        (Adam, {"history": 10}),
        (Adam, {"joint_labels": True}),
        (Adam, {"sign_softness": 0.1}),
        (TotalVariation, {"weight": 1.0, "registered": True}),
        (Grey, {"side": 4}),
        (Signs, {"relative": True}),
    ],
    ids=str,
)
def test_a_part_has_no_setting_of_another(part, setting):
    with pytest.raises(TypeError, match="unexpected keyword argument|takes no arguments"):
        part(**setting)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"priors": [TotalVariation(0.1)]}, "total variation has kinks.*set total_variation to 0"),
        ({"priors": [RacedTotalVariation((0.1, 0.2))]}, "does not fit total_variations"),
        ({"priors": [BNStatistics(0.1)]}, "set batch_norm to 0"),
        ({"priors": [GroupConsistency(0.1)], "restarts": Restarts(2)}, "the consensus moves"),
        ({"restarts": Restarts(4, halving=2)}, "set halving to 0"),
        ({"distance": Signs()}, "distance='signs'.*set distance to cosine or l2"),
    ],
    ids=str,
)
def test_line_searches_say_which_part_does_not_fit(parts, words):
    with pytest.raises(ValueError, match=words):
        replace(SMOOTH, **parts)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"priors": [ImageNorm(0.1), ImageNorm(0.2)]}, "each kind of prior once, got ImageNorm twice"),
        ({"priors": [TotalVariation(0.1), RacedTotalVariation((0.1, 0.2))]}, "got TotalVariation twice"),
        ({"priors": [GroupConsistency(0.1)]}, "set restarts to 2 or more"),
        ({"init": Grey(), "restarts": Restarts(2)}, "set restarts to 1"),
        ({"replay": "rolled"}, "auto, one-gradient, unrolled, surrogate, got 'rolled'"),
        ({"memory": -1.0}, "memory in GiB"),
        ({"layers": "!"}, "separated by"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_together_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        GradientMatching(**parts)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SoftSign(0.0), "positive, finite softness"),
        (lambda: Patterned(0), "side"),
        (lambda: L1(scale="mine"), "absolute, relative, direction"),
        (lambda: RacedTotalVariation((0.1,)), "two or more different weights.*got '0.1'"),
        (lambda: LBFGS(history=0), "history of 1 or more"),
        (lambda: GradientMatching().with_options(restart=2), "has no option restart; it has iterations"),
    ],
)
def test_parts_check_themselves(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_a_prior_of_weight_0_is_none():
    none, weightless = (GradientMatching(optimiser=Adam(iterations=9), priors=p) for p in ([], [TotalVariation(0.0)]))
    assert torch.equal(attacked(none).inputs, attacked(weightless).inputs)
    assert replace(SMOOTH, priors=[TotalVariation(0.0)]).optimiser.iterations == 10


@dataclass(frozen=True)
class Flat(Prior):
    """Total variation by another name, of someone who does not touch ours."""

    weight: float = 1e-2

    def on(self, piece):
        class Penalty(priors.Prior):
            def __call__(self, images):
                return total_variation(images)

        return Penalty()


@dataclass(frozen=True, kw_only=True)
class PlainDescent(Optimiser):
    """Steepest descent of one's own."""

    iterations: int = 20
    plateau: int = 0

    def minimise(self, problem, progress):
        x = problem.start
        for _ in range(self.iterations):
            x = x.detach().requires_grad_(True)
            first = self._distances(problem, x)
            (gradient,) = torch.autograd.grad((first + problem.objective.priors(x)).sum(), x)
            x = x - 0.5 * gradient
        distances = self._distances(problem, x.detach()).detach()
        begin = self._distances(problem, problem.start).detach()
        none = torch.zeros_like(distances)
        return Matched(
            candidates=x.detach(), distances=distances, diverged=none.bool(), starts=begin, late_falls=none,
            iterations=none.long() + self.iterations,
        )  # fmt: skip

    def _distances(self, problem, x):
        return problem.objective.distances(x)

    def shortened(self, iterations):
        return replace(self, iterations=iterations)

    def check_beside(self, distance, penalties, restarts):
        pass


def test_a_prior_of_ones_own_works_like_ours():
    ours, own = (GradientMatching(optimiser=Adam(iterations=9), priors=[p]) for p in (TotalVariation(1e-2), Flat()))
    assert torch.equal(attacked(ours).inputs, attacked(own).inputs)


def test_an_optimiser_of_ones_own_is_run_and_has_no_spec():
    search = GradientMatching(optimiser=PlainDescent(), priors=[])
    found = attacked(search)
    assert found.outcome in {Outcome.ITERATION_LIMIT, Outcome.CONVERGED}
    assert found.iterations == 20
    assert found.matching_loss < found.starting_loss
    with pytest.raises(TypeError, match="Adam and LBFGS, got PlainDescent"):
        options_of(search)
