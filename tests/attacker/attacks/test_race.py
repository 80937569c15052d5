"""Priors are raced for each update, without the truth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.attacks import GradientMatching
from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.gradient_matching.race import Size, best_fit
from attacker.attacks.randomness import derived
from attacker.attacks.registry import build_attack
from attacker.reasons import because
from tests.attacker.audits import audit_tape
from tests.attacker.bottlenecked import SPEC, client, normal, two_bottlenecks
from tests.attacker.members import convolutions, observations, victim_of
from tests.attacker.taped_federation import tape_federation

PRIORS = "1e-6|1e-4|1e-2|1e-1"
SMALL = Size(unknowns=100, equations=10_000)


def found(distance, *, outcome=Outcome.ITERATION_LIMIT, iterations=10):
    return Reconstruction(
        inputs=torch.zeros(1), labels=None, outcome=outcome, matching_loss=distance, iterations=iterations
    )


@pytest.mark.parametrize(
    ("distances", "size", "best"),
    [
        ([0.300, 0.301, 0.302, 0.400], SMALL, 1e-2),  # so much less is what 100 pixels explain of noise
        ([0.300, 0.310, 0.320, 0.400], SMALL, 1e-6),
        ([0.300, 0.310, 0.320, 0.500], Size(unknowns=700, equations=1000), 1e-1),
        ([0.300, 0.310, 0.700, 0.900], Size(unknowns=10**6, equations=1000), 1e-4),  # but so much more is always worse
        ([1e-9, 1e-6, 1e-4, 1e-2], SMALL, 1e-6),
        ([0.0, 0.0, 1e-4, 1e-2], SMALL, 1e-4),
        ([None, float("nan"), 0.5, 0.9], SMALL, 1e-2),
    ],
)
def test_the_largest_weight_that_fits_as_well_as_the_best_is_taken(distances, size, best):
    ran = [(weight, found(one)) for weight, one in zip((1e-6, 1e-4, 1e-2, 1e-1), distances, strict=True)]
    assert best_fit(ran, size, GradientMatching())[0] == best
    assert best_fit(ran[::-1], size, GradientMatching())[0] == best


def test_a_diverged_search_wins_only_among_its_like():
    lost, other = found(1e-9, outcome=Outcome.DIVERGED), found(0.9)
    assert best_fit([(1e-6, lost), (1e-1, other)], SMALL, GradientMatching())[1] is other
    assert best_fit([(1e-6, lost)], SMALL, GradientMatching())[1] is lost


@pytest.mark.parametrize(
    ("model", "suits"),
    [("lenet", "1e-6"), ("lenet:activation=relu", "1e-1")],
)
def test_the_race_finds_the_prior_that_suits_the_model(tmp_path, model, suits):
    tape = tape_federation(tmp_path / "run", model=model, dataset="faces", clients=3, rounds=1).tape
    base = "inverting-gradients:preset=precode-paper,iterations=80,learning_rate=0.1"
    specs = {weight: f"{base},total_variation={weight}" for weight in ("1e-6", "1e-1")}
    specs["raced"] = f"{base},total_variations={PRIORS}"
    record = audit_tape(tape, out=tmp_path / "out", attacks=list(specs.values()), victims=3)
    mean = {name: next(s.mean_ssim for s in record.summaries if s.attack == spec) for name, spec in specs.items()}
    (other,) = {"1e-6", "1e-1"} - {suits}
    assert mean[suits] > mean[other] + 0.1
    assert mean["raced"] > mean[suits] - 0.1


def test_each_update_is_raced_alone():
    victim = victim_of(convolutions)
    _, seen = observations(victim, 3)
    attack = build_attack(f"inverting-gradients:iterations=20,total_variations={PRIORS}")
    labels = [torch.tensor([0]), torch.tensor([1]), torch.tensor([2])]
    together = attack(victim, seen, generator=torch.Generator().manual_seed(2), labels=labels)
    for index, own in enumerate(derived(torch.Generator().manual_seed(2), 3)):
        (alone,) = attack(victim, [seen[index]], generator=[own], labels=[labels[index]])
        assert alone.reason == together[index].reason
        assert torch.allclose(alone.inputs, together[index].inputs, atol=1e-2)


@pytest.mark.parametrize(("iterations", "starts"), [(20, 8), (310, 2)])
def test_the_work_of_a_race_is_what_is_reckoned(iterations, starts):
    victim = victim_of(convolutions)
    _, seen = observations(victim)
    attack = GradientMatching().with_options(iterations=iterations, restarts=2, total_variations=PRIORS)
    (result,) = attack(victim, seen, generator=torch.Generator().manual_seed(0), labels=[torch.tensor([0])])
    one_start = attack.with_options(restarts=1)
    assert result.iterations == one_start.evaluations
    assert result.starts == starts
    assert "prior-chosen" in result.reason_codes


@pytest.mark.parametrize("name", ["ignore", "noise-recovery", "noise-restoring"])
def test_adaptive_searches_race_too(name):
    victim = two_bottlenecks()
    x = normal(1, *SPEC.shape)
    seen = client(victim, x, [2], [normal(1, 6), normal(1, 4)])
    attack = build_attack(f"{name}:iterations=5,total_variations=1e-6|1e-1")
    (result,) = attack(victim, [seen], generator=torch.Generator().manual_seed(0))
    assert result.iterations == 10
    assert "prior-chosen" in result.reason_codes


def test_a_search_by_the_announced_distance_races_too():
    victim = victim_of(convolutions)
    _, (seen,) = observations(victim)
    seen = replace(seen, protocol=replace(seen.protocol, defence="noise:std=0.01"))
    attack = build_attack("defence-matched:iterations=5,total_variations=1e-6|1e-1")
    (result,) = attack(victim, [seen], generator=torch.Generator().manual_seed(0), labels=[torch.tensor([0])])
    assert result.iterations == 10
    assert result.reason_codes == ("distance-chosen", "prior-chosen")
    assert result.reason.startswith(because("distance-chosen", distance="l2-relative"))


@pytest.mark.parametrize("given", ["1e-6", "1e-6|1e-6", "1e-6|-1", "1e-6|much", "|", "1e-6|inf"])
def test_weights_that_cannot_be_raced_are_refused(given):
    with pytest.raises(ValueError, match="two or more different weights"):
        GradientMatching().with_options(total_variations=given)


def test_l_bfgs_has_no_prior_to_race():
    with pytest.raises(ValueError, match="does not fit total_variations"):
        build_attack("idlg").with_options(total_variations=PRIORS)
