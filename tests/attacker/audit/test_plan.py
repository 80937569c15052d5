"""The planner: what runs, what does not and why, in which order, with how many iterations, for a budget."""

from __future__ import annotations

import pytest

from attacker.attacks.gradient_matching.optimisers import Restarts
from attacker.attacks.gradient_matching.race import heat_iterations
from attacker.attacks.registry import ATTACKS, build_attack
from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.planning import plan as planner
from attacker.audit.planning.costs import cost
from attacker.audit.planning.plan import FORMULAS_SHARE, LADDER, PRIORS, plan_audit
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import Knowledge
from attacker.reasons import because
from tests.attacker.taped_federation import tape_federation

UNIT = 0.001
"""Seconds of an iteration, for plans that shall not depend on this machine."""


@pytest.fixture(scope="module")
def federations(tmp_path_factory):
    """A LeNet with PRECODE, and its control."""
    folder = tmp_path_factory.mktemp("run")
    tape = tape_federation(folder, model="lenet", defence="precode:latent=8", rounds=1).tape
    settings = AuditSettings(attacks=("first-layer",), victims=2)
    return open_federations([TapeSource(tape=tape)], settings, folder / "controls")


def planned(federations, monkeypatch, *, knowledge=None, **changes):
    monkeypatch.setattr(planner, "measure_unit", lambda *_: UNIT)
    settings = AuditSettings(**{"victims": 2, "knowledge": knowledge or Knowledge(), **changes})
    return {(one.federation, one.attack.partition(":")[0]): one for one in plan_audit(federations, settings)}


def test_every_attack_is_there_with_the_reason(federations, monkeypatch):
    found = planned(federations, monkeypatch, budget=1e6)
    assert {name for own, name in found if own == "f1"} == set(ATTACKS)
    assert all(one.reason for one in found.values())
    assert found["f1", "first-layer"].status == "not_applicable"
    assert found["f1", "first-layer"].reason_codes == ["first-layer-not-linear"]
    assert found["f1", "through-bottleneck"].status == "run"
    assert found["f1", "dropout-inversion"].reason_codes == ["another-defence"]
    assert found["f1", "inverting-gradients"].reason_codes == ["ignores-defence"]
    assert ("f1-control", "ignore") not in found  # without a defence there is nothing to answer
    assert found["f1-control", "inverting-gradients"].status == "run"


def test_attacks_that_answer_the_defence_come_first_and_the_strongest_before_all(federations, monkeypatch):
    found = planned(federations, monkeypatch, budget=1e6)
    roles = [one.role for (own, _), one in found.items() if own == "f1"]
    assert roles == sorted(roles)  # adaptive, then plain
    ran = [name for (own, name), one in found.items() if own == "f1" and one.status == "run"]
    assert ran[:3] == ["through-bottleneck", "hybrid", "then-refine"]
    assert ran.index("noise-recovery") < ran.index("ignore")


@pytest.mark.parametrize("share", [1.01, 0.99])
def test_the_most_iterations_that_fit(federations, monkeypatch, share):
    long = planned(federations, monkeypatch, budget=1e6)
    assert long["f1", "ignore"].iterations == LADDER[0]
    whole = sum(one.expected_seconds or 0.0 for one in long.values() if one.status == "run")
    found = planned(federations, monkeypatch, budget=whole * share)
    assert found["f1", "ignore"].iterations == LADDER[0 if share > 1 else 1]
    assert sum(one.expected_seconds or 0.0 for one in found.values() if one.status == "run") <= whole * share
    assert not any(one.status == "over_budget" for one in found.values())
    spec = found["f1", "ignore"].attack
    assert found["f1", "ignore"].expected_seconds == pytest.approx(UNIT * cost(spec) * 2)


def test_what_is_expected_is_two_updates_of_every_start_and_of_every_heat(federations, monkeypatch):
    found = planned(federations, monkeypatch, budget=1e6)
    heats = 4 * heat_iterations(LADDER[0])
    assert found["f1", "ignore"].expected_seconds == pytest.approx(UNIT * (LADDER[0] + heats) * 2)
    assert found["f1", "noise-recovery"].expected_seconds == pytest.approx(UNIT * (2 * LADDER[0] + heats) * 2)


def test_every_search_with_a_prior_races_its_weights(federations, monkeypatch):
    found = planned(federations, monkeypatch, budget=1e6)
    specs = {name: one.attack for (own, name), one in found.items() if own == "f1" and one.status == "run"}
    raced = {name for name, spec in specs.items() if f"total_variations={PRIORS}" in spec}
    assert raced == {"inverting-gradients", "noise-recovery", "noise-restoring", "ignore", "defence-matched"}
    assert {float(weight) for weight in PRIORS.split("|")} == {1e-6, 1e-4, 1e-2, 1e-1}


def test_the_first_search_of_each_kind_has_two_starts_as_long_as_there_is_time(federations, monkeypatch):
    def twice(found):
        return [key for key, one in found.items() if one.status == "run" and starts(one.attack) == 2]

    def starts(spec):
        attack = build_attack(spec)
        return getattr(getattr(attack, "matching", attack), "restarts", Restarts()).count

    found = planned(federations, monkeypatch, budget=1e6)
    assert twice(found) == [
        ("f1", "noise-recovery"),
        ("f1", "inverting-gradients"),
        ("f1-control", "inverting-gradients"),
    ]
    # The control is attacked by the same spec, or the two could not be compared.
    assert found["f1", "inverting-gradients"].attack == found["f1-control", "inverting-gradients"].attack
    assert twice(planned(federations, monkeypatch, budget=1.0)) == []


def test_gradient_matching_without_and_with_the_control_is_kept_longest(federations, monkeypatch):
    budget = 6 * 300 * UNIT * 2  # half of it for formulas
    found = planned(federations, monkeypatch, budget=budget)
    left = [key for key, one in found.items() if one.status == "over_budget"]
    ran = [key for key, one in found.items() if one.status == "run"]
    assert {("f1", "inverting-gradients"), ("f1-control", "inverting-gradients")} <= set(ran)
    assert ("f1", "dlg") in left
    assert found["f1", "dlg"].reason_codes == ["over-budget"]
    assert sum(found[key].expected_seconds for key in ran) <= budget


def test_formulas_are_given_their_time_first_and_as_many_updates_as_fit(federations, monkeypatch):
    whole = planned(federations, monkeypatch, budget=1e6)["f1", "through-bottleneck"]
    each = whole.expected_seconds / whole.updates
    found = planned(federations, monkeypatch, budget=1.01 * each / FORMULAS_SHARE)
    assert (found["f1", "through-bottleneck"].status, found["f1", "through-bottleneck"].updates) == ("run", 1)
    assert "budget-for-some" in found["f1", "through-bottleneck"].reason_codes
    ran = [name for (_, name), one in found.items() if one.status == "run"]
    assert "hybrid" not in ran
    assert "dlg" not in ran
    assert planned(federations, monkeypatch, budget=0.9 * each / FORMULAS_SHARE)["f1", "through-bottleneck"].status == (
        "over_budget"
    )


def test_what_is_withheld_refuses_the_attacks_that_need_it(federations, monkeypatch):
    found = planned(federations, monkeypatch, budget=1e6, knowledge=Knowledge.usual(withhold=["defence"]))
    assert found["f1", "ignore"].status == "refused"
    assert found["f1", "ignore"].reason == because("withheld", kinds="defence")
    assert found["f1", "inverting-gradients"].status == "run"


def test_named_attacks_run_as_they_are_named(federations, monkeypatch):
    spec = "inverting-gradients:iterations=9"
    found = planned(federations, monkeypatch, attacks=(spec, "ignore:iterations=7"))
    assert list(found) == [("f1", "inverting-gradients"), ("f1", "ignore"), ("f1-control", "inverting-gradients")]
    assert (found["f1", "inverting-gradients"].attack, found["f1", "inverting-gradients"].iterations) == (spec, 9)
