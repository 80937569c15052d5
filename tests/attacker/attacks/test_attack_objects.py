"""Attacks as objects and by the place of their class: in settings, in worker processes, in the record."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from attacker.attacks import ATTACKS, FirstLayerInversion, GradientMatching, Hybrid, Ignore, build_attack
from attacker.attacks.gradient_matching.parts import Adam, Restarts
from attacker.attacks.objects import check_travel, spec_of
from attacker.attacks.registry import HELD, attack_title, entry_of
from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.settings import AuditSettings
from tests.attacker.own_attacks import Black, Grey, Misshapen
from tests.attacker.taped_federation import tape_federation

PLACE = "tests.attacker.own_attacks"


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("run"), rounds=1).tape


@dataclass(frozen=True, kw_only=True)
class Elaborate(Grey):
    """Holds what no text describes."""

    model: object = field(default_factory=object)


RACED = "inverting-gradients:total_variations=1e-6|1e-2"


@pytest.mark.parametrize(
    ("attack", "spec"),
    [
        (FirstLayerInversion(), "first-layer"),
        (GradientMatching(optimiser=Adam(iterations=9, signed=False)), "inverting-gradients:iterations=9,signed=false"),
        (build_attack("dlg:iterations=9"), "dlg:iterations=9"),
        (Hybrid(), "hybrid"),
        (Ignore(matching=GradientMatching(restarts=Restarts(2)), draws=3), "ignore:draws=3,restarts=2"),
        (Ignore(announced=False), "ignore:distance=cosine"),
        (
            build_attack("inverting-gradients:total_variations=1e-6|1e-2"),
            "inverting-gradients:total_variations=1e-6|1e-2",
        ),
        (Grey(), f"{PLACE}:Grey"),
        (Grey(shade=0.25, words="a: (b), c"), f"{PLACE}:Grey(shade=0.25, words='a: (b), c')"),
        (Black(shade=1.0), f"{PLACE}:Black(shade=1.0)"),  # its name is known where its module is imported, only
        ("dlg:iterations=9", "dlg:iterations=9"),
    ],
    ids=str,
)
def test_an_attack_is_known_by_a_spec_that_builds_it_again(attack, spec):
    assert spec_of(attack) == spec
    assert build_attack(spec) == (build_attack(attack) if isinstance(attack, str) else attack)
    assert spec not in HELD
    check_travel([spec])


def test_every_registered_attack_is_made_again_from_its_object():
    for name in ATTACKS:
        attack = build_attack(name)
        assert build_attack(spec_of(attack)) == attack


def test_what_no_text_describes_stays_in_this_process():
    one, other = Elaborate(model=object()), Elaborate(model=object())
    specs = [spec_of(one), spec_of(other)]
    assert specs == [spec_of(one), spec_of(other)]
    assert len(set(specs)) == 2
    assert build_attack(specs[0]) is one
    assert build_attack(specs[1]) is other
    assert attack_title(specs[0]) == "Elaborate"
    with pytest.raises(ValueError, match="lives in this process alone.*workers=1"):
        check_travel(["dlg", specs[0]])


def test_a_name_that_only_this_process_registered_does_not_travel():
    assert build_attack("test-black") == Black()
    with pytest.raises(ValueError, match="test-black.* lives in this process alone"):
        check_travel(["dlg", "test-black:shade=0.5"])


def test_a_plan_with_such_a_name_is_refused_before_anything_is_attacked(tape, tmp_path):
    settings = AuditSettings(victims=1, control=False, budget=1e5)  # on a machine of any load, all of it is planned
    with pytest.raises(ValueError, match="test-black.* lives in this process alone"):
        audit([TapeSource(tape=tape)], settings, out=tmp_path, workers=2)
    assert not (tmp_path / "audit.json").exists()


@pytest.mark.parametrize("wrong", [Grey, 7, SimpleNamespace(name="dlg")])
def test_what_is_no_attack_is_refused(wrong):
    with pytest.raises(TypeError, match="expected a spec or an object of an attack"):
        AuditSettings(attacks=(wrong,))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (f"{PLACE}:Nothing", "has no 'Nothing'; it has .*Black"),
        (f"{PLACE}:torch", "expected a subclass of fl_precode.attacks.Attack"),
        (f"{PLACE}:Grey(colour=1)", "unexpected keyword argument 'colour'"),
        (f"{PLACE}:Grey(shade=depth)", "expected shade to be a literal"),
        ("no_such_package.attacks:Mine", "there is no such module"),
        ("attacker.attacks.base:Attack", "lacks refuses, run"),
        ("dlg:iterations", "form key=value"),
    ],
)
def test_a_place_that_leads_nowhere_is_refused_with_advice(spec, words):
    with pytest.raises(ValueError, match=words):
        build_attack(spec)


def test_names_for_people_are_never_looked_up_by_an_import():
    """Records name what they like; the page of one must not run anybody's code."""
    assert attack_title(f"{PLACE}:Black") == "a black picture"
    assert attack_title("antigravity:Fly(high=True)") == "Fly"
    assert entry_of(f"{PLACE}:Grey").description == "Answers one shade for every pixel"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_audit_takes_objects_wherever_they_are_run(tape, tmp_path, workers):
    attacks = (FirstLayerInversion(), Black(), Grey(shade=0.25))
    settings = AuditSettings(attacks=attacks, victims=2, control=False)
    record = audit([TapeSource(tape=tape)], settings, out=tmp_path, workers=workers)
    specs = ["first-layer", f"{PLACE}:Black", f"{PLACE}:Grey(shade=0.25)"]
    assert [one.spec for one in record.attacks] == specs
    assert [one.successes for one in record.summaries] == [2, 0, 0]
    assert [one.description for one in record.attacks][1:] == ["Black.", "Answers one shade for every pixel"]
    assert [row.outcome for row in record.results] == ["converged"] * 6


def test_an_object_that_cannot_travel_is_refused_where_others_would_work(tape, tmp_path):
    settings = AuditSettings(attacks=(Elaborate(),), victims=1, control=False)
    with pytest.raises(ValueError, match="lives in this process alone"):
        audit([TapeSource(tape=tape)], settings, out=tmp_path, workers=2)
    record = audit([TapeSource(tape=tape)], settings, out=tmp_path)
    assert [row.outcome for row in record.results] == ["converged"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("flat", r"expected images of shape \(batch, 1, 8, 8\) .* got \(1, 7\)"),
        ("of bytes", "uint8"),
        ("a list", "expected images as a tensor, got list"),
        ("too few", "expected one Reconstruction for each of 1 updates, got 0"),
        ("nothing", "expected run\\(\\) to return a list of Reconstruction, got NoneType"),
    ],
)
def test_results_of_a_wrong_shape_fail_that_attack_and_the_others_go_on(tape, tmp_path, how, words):
    settings = AuditSettings(attacks=(Misshapen(how=how), "first-layer"), victims=1, control=False)
    record = audit([TapeSource(tape=tape)], settings, out=tmp_path)
    assert [row.outcome for row in record.results] == ["failed", "converged"]
    assert re.search(words, record.results[0].reason)
