"""The portfolio: exact attacks end it, the best by one measure wins, and a member's failure is its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.attacks import FirstLayerInversion, GradientMatching, Member, Outcome, Portfolio, build_attack
from attacker.attacks.best_match import EXACT_BELOW
from attacker.attacks.gradient_matching.parts import Adam, Restarts, TotalVariation
from attacker.attacks.portfolio import standard_members
from attacker.attacks.randomness import derived
from attacker.metrics.similarity import match_batch, mse
from attacker.reasons import because, raised
from tests.attacker import tiny
from tests.attacker.members import (
    EQUATIONS,
    SPEC,
    Raises,
    convolutions,
    error,
    measured,
    members,
    observations,
    portfolio,
    relu_convnet,
    run,
    victim_of,
)


def test_an_exact_analytic_image_ends_it():
    victim = victim_of()
    truths, seen = observations(victim, 3)
    for x, observation, one in zip(truths, seen, run(portfolio(), victim, seen), strict=True):
        assert one.method == "first-layer"
        assert one.iterations == 0
        assert one.outcome is Outcome.CONVERGED
        assert one.matching_loss == pytest.approx(measured(victim, observation, one), abs=1e-12)
        assert one.matching_loss < EXACT_BELOW
        assert error(one, x) < 1e-20


def test_an_analytic_image_that_does_not_match_does_not_end_it():
    victim = victim_of()
    _, (good,) = observations(victim)
    noisy = replace(good, update={name: g + 1e-2 * torch.randn_like(g) for name, g in good.update.items()})
    (one,) = run(portfolio(), victim, [noisy])
    assert one.iterations == 180
    assert one.method != "first-layer"


def test_only_observations_that_are_not_decided_stay_and_the_order_is_kept():
    victim = victim_of()
    truths, seen = observations(victim, 3)
    seen[1] = replace(seen[1], update={name: g + 1e-2 * torch.randn_like(g) for name, g in seen[1].update.items()})
    found = run(portfolio(), victim, seen)
    assert [one.iterations for one in found] == [0, 180, 0]
    assert [one.labels.tolist() for one in found] == [[0], [1], [2]]
    assert error(found[0], truths[0]) < 1e-20
    assert error(found[2], truths[2]) < 1e-20


@pytest.mark.parametrize("bottleneck", [False, True])
def test_equations_decide_before_anything_is_searched(bottleneck):
    victim = victim_of(tiny.convnet, bottleneck=bottleneck)
    truths, seen = observations(victim, 2)
    for x, one in zip(truths, run(portfolio(equations=True), victim, seen), strict=True):
        assert one.method == ("through-bottleneck" if bottleneck else "layerwise-inversion")
        assert one.iterations == 0
        assert error(one, x) < 1e-10


def test_l_bfgs_wins_on_a_smooth_convnet():
    victim = victim_of(tiny.convnet)
    truths, seen = observations(victim, 2)
    for x, one in zip(truths, run(portfolio(300, restarts=2), victim, seen), strict=True):
        assert one.method == "dlg:iterations=300,restarts=2,plateau=0"
        assert error(one, x) < 1e-4


def test_signed_cosine_wins_on_a_convnet_with_relu():
    victim = victim_of(relu_convnet)
    _, seen = observations(victim, 2)
    for one in run(portfolio(200), victim, seen):
        assert one.method.startswith("inverting-gradients:iterations=200,restarts=1,plateau=0,total_variation=")


@pytest.mark.parametrize("build", [tiny.convnet, relu_convnet], ids=lambda one: one.__name__)
@pytest.mark.parametrize("labels", [None, [torch.tensor([0]), torch.tensor([3])]], ids=["recovered", "granted"])
def test_it_is_never_worse_than_a_member_alone(build, labels):
    victim = victim_of(build)
    _, seen = observations(victim, 2)
    whole = portfolio(40)
    found = run(whole, victim, seen, seed=5, labels=labels)
    each = derived(torch.Generator().manual_seed(5), len(seen))
    _, *own = zip(*(derived(one, 1 + len(whole.members)) for one in each), strict=True)
    best = [float("inf")] * len(seen)
    for member, generators in zip(whole.members, own, strict=True):
        given = labels or [torch.tensor([0]), torch.tensor([1])]
        for index, alone in enumerate(member.attack(victim, seen, generator=generators, labels=given)):
            if alone.inputs is not None:
                distance = measured(victim, seen[index], alone)
                if distance < best[index]:
                    best[index] = distance
                if member.method == found[index].method:
                    assert torch.equal(alone.inputs, found[index].inputs)
    assert [one.matching_loss for one in found] == pytest.approx(best, rel=1e-9)


def test_a_member_that_raises_is_named_and_the_others_go_on(caplog):
    victim = victim_of(tiny.convnet)
    _, seen = observations(victim, 2)
    methods = ("idlg:iterations=40", "inverting-gradients:iterations=40")
    good = Portfolio(members=members(*methods))
    broken = Portfolio(members=(good.members[0], Member(method="a:b=1", attack=Raises()), good.members[1]))
    for one in run(broken, victim, seen):
        assert one.reason == because("member", method="a:b=1", why=raised(RuntimeError("out of memory")))
        assert one.method == methods[0]
        assert one.outcome in (Outcome.CONVERGED, Outcome.ITERATION_LIMIT)
    assert "a:b=1 failed as a member of a portfolio" in caplog.text


def test_without_any_image_failures_come_before_refusals():
    victim = victim_of(tiny.convnet)
    _, seen = observations(victim)
    refusing = Member(method="first-layer", attack=FirstLayerInversion())
    (refused,) = run(Portfolio(members=(refusing,)), victim, seen)
    assert refused.outcome is Outcome.NOT_APPLICABLE
    assert refused.reason_codes == ("member", "first-layer-not-linear")
    for defect in (Raises(), Raises(on_refusal=True)):
        (failed,) = run(Portfolio(members=(refusing, Member(method="a", attack=defect))), victim, seen)
        assert failed.outcome is Outcome.FAILED
        assert failed.inputs is None
        assert failed.reason.startswith("a: RuntimeError: ")
        assert failed.reason_codes == ("member", "attack-raised", "first-layer-not-linear")


def test_labels_of_a_batch_are_recovered_once_or_optimised():
    victim = victim_of()
    x = tiny.images(SPEC, 2)
    observation = tiny.observe(victim, x, [0, 3])
    dlg, signed = (
        Portfolio(members=members(method))
        for method in ("dlg:iterations=600,restarts=4", "inverting-gradients:iterations=20")
    )
    (one,) = run(dlg, victim, [observation])
    order = match_batch(SPEC.denormalise(one.inputs), SPEC.denormalise(x))
    assert float(mse(SPEC.denormalise(one.inputs)[order], SPEC.denormalise(x)).max()) < 1e-3
    assert run(signed, victim, [observation])[0].labels.tolist() == [0, 3]
    bare = victim_of(convolutions)  # no method of label recovery fits
    observation = tiny.observe(bare, x, [0, 3])
    assert run(dlg, bare, [observation])[0].labels is not None
    assert "labels-tried" in run(signed, bare, [observation])[0].reason_codes
    many = tiny.observe(bare, tiny.images(SPEC, 4), [0, 1, 3, 3])
    assert "labels-unknown" in run(signed, bare, [many])[0].reason_codes


def test_granted_labels_are_checked():
    victim = victim_of()
    _, seen = observations(victim)
    with pytest.raises(ValueError, match="from 0 to 3"):
        run(portfolio(), victim, seen, labels=[torch.tensor([4])])


def test_progress_is_monotone_and_the_generator_decides_everything():
    victim = victim_of(tiny.convnet)
    _, seen = observations(victim, 2)
    shares: list[float] = []
    first = run(portfolio(20), victim, seen, progress=lambda done, _: shares.append(done))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(set(shares)) > 10
    torch.manual_seed(99)
    again, other = run(portfolio(20), victim, seen), run(portfolio(20), victim, seen, seed=1)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].inputs, other[0].inputs)


def test_specs_carry_the_budget():
    built = build_attack("portfolio:iterations=50,restarts=2,plateau=7,total_variations=0|0.5")
    assert isinstance(built, Portfolio)
    assert [member.method for member in built.members] == [
        "first-layer",
        *EQUATIONS,
        "dlg:iterations=50,restarts=2,plateau=7",
        "inverting-gradients:iterations=50,restarts=2,plateau=7,total_variation=0",
        "inverting-gradients:iterations=50,restarts=2,plateau=7,total_variation=0.5",
        *(
            f"{name}:iterations=50,restarts=2,plateau=7,total_variation={weight}"
            for name in ("noise-recovery", "noise-restoring", "ignore")
            for weight in ("0", "0.5")
        ),
        "patch-embedding",
        "activation-span",
    ]
    assert built.members[6].attack == GradientMatching(
        optimiser=Adam(iterations=50, plateau=7), priors=[TotalVariation(0.5)], restarts=Restarts(2)
    )
    assert [member.attack for member in build_attack("portfolio").members[5:8]] == [
        GradientMatching().with_options(iterations=2000, plateau=200, total_variation=weight)
        for weight in (1e-6, 1e-4, 1e-2)
    ]
    for wrong, words in (
        ("portfolio:iterations=0", "portfolio:iterations=0.*whole number of 1"),
        ("portfolio:total_variations=a|b", "numbers separated by"),
        ("portfolio:total_variations=0.1|0.1", "different methods"),
    ):
        with pytest.raises(ValueError, match=words):
            build_attack(wrong)
    with pytest.raises(ValueError, match="got none"):
        Portfolio(members=())
    with pytest.raises(ValueError, match="weights of total variation"):
        standard_members(iterations=1, restarts=1, plateau=0, total_variations=())


def test_searches_on_a_plateau_end_early():
    victim = victim_of(tiny.convnet)
    _, seen = observations(victim)
    (short,), (whole,) = (run(portfolio(200, plateau=plateau), victim, seen) for plateau in (5, 0))
    assert 3 < short.iterations < whole.iterations
