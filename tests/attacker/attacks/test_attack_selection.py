"""Which attacks answer which defence, and why the others do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.attacks import ATTACKS
from attacker.attacks.registry import AttackEntry, build_attack
from attacker.attacks.selection import (
    answers,
    attacks_for,
    parts_of,
    plain_searches,
    strongest_first,
    unanswerable,
)
from attacker.reasons import because
from fl_precode import Protocol
from fl_precode.defences.registry import DEFENCES
from tests.attacker import tiny
from tests.attacker.bottlenecked import SPEC, client, normal
from tests.attacker.members import victim_of

X = tiny.images(SPEC, 1)


def listed(found, role):
    return [one.spec for one in found if one.role == role]


def test_behind_precode_recovery_comes_before_search_and_plain_attacks_last():
    victim = victim_of(tiny.convnet, bottleneck=True)
    seen = client(victim, X, [0], [normal(1, 5)], protocol=Protocol(defence="precode", batch_norm="buffers"))
    found = attacks_for(victim, observation=seen)
    adaptive = listed(found, "adaptive")
    assert adaptive == [name for name in strongest_first() if name in adaptive]
    assert {"noise-recovery", "noise-restoring", "ignore", "defence-matched"} <= set(adaptive)
    assert [one for one in listed(found, "plain") if one in plain_searches()] == plain_searches()
    by_name = {one.spec: one for one in found}
    assert by_name["noise-recovery"].applies
    assert by_name["noise-recovery"].reason == because("answers-defence", names="precode")
    assert not by_name["first-layer"].applies
    assert by_name["first-layer"].reason_codes == ("not-applicable", "first-layer-not-linear")
    assert by_name["inverting-gradients"].reason_codes == ("ignores-defence",)
    assert [one.role for one in found] == sorted(one.role for one in found)


def test_the_update_decides_what_applies():
    victim = victim_of(tiny.convnet, bottleneck=True)
    protocol = Protocol(defence="precode+noise:std=0.1", batch_norm="buffers")
    pair = client(victim, tiny.images(SPEC, 2), [0, 1], [normal(2, 5)], protocol=protocol)
    found = {one.spec: one for one in attacks_for(victim, observation=pair)}
    assert found["noise-recovery"].reason_codes == ("not-applicable", "several-images")
    assert found["ignore"].reason == because("answers-defence", names="precode, noise")
    assert found["through-bottleneck"].reason_codes[0] == "not-applicable"
    assert found["defence-matched"].reason == because("answers-defence", names="precode, noise")
    foreign = replace(pair, parameters={"a": X}, update={"a": X})
    misfits = attacks_for(victim, observation=foreign)
    assert all(not one.applies and "another-model" in one.reason_codes for one in misfits)


def test_on_a_linear_first_layer_the_formula_comes_first():
    victim = victim_of(bottleneck=True)
    seen = client(victim, X, [0], [normal(1, 5)])
    found = attacks_for(victim, observation=seen, defence="precode")
    assert (found[0].spec, found[0].role, found[0].applies) == ("first-layer", "adaptive", True)


def test_without_an_update_only_the_names_decide():
    victim = victim_of(tiny.convnet)
    for protocol, defence in ((Protocol(defence="dropout"), None), (None, "dropout")):
        found = attacks_for(victim, protocol=protocol, defence=defence)
        assert "dropout-inversion" in listed(found, "adaptive")
        assert "ignore" not in [one.spec for one in found]
        assert all(one.applies for one in found)
    none = attacks_for(victim, defence="none")
    assert {one.role for one in none} == {"plain"}
    assert all(one.reason_codes == ("no-defence",) for one in none)
    with pytest.raises(ValueError, match="not announced"):
        attacks_for(victim, protocol=Protocol())


def test_attacks_registered_later_take_their_place():
    entry = ATTACKS["ignore"]
    later = {
        "through-bottleneck": replace(entry, answers=frozenset({"precode"}), rank=20),
        "novel": AttackEntry(description="new", source="-", build=entry.build, answers=frozenset({"precode"})),
    }
    with ATTACKS.instead(later):
        adaptive = listed(attacks_for(victim_of(tiny.convnet), defence="precode"), "adaptive")
    assert adaptive.index("through-bottleneck") < adaptive.index("noise-recovery")
    assert adaptive[-1] == "novel"


def test_only_defences_that_exist_are_answered():
    for name, entry in ATTACKS.items():
        assert entry.answers <= DEFENCES.keys() - {"none"}, name
        assert entry.adaptive == bool(entry.answers)
        assert entry.inside <= entry.answers, name
    assert answers("ignore:iterations=3", "cvb+noise:std=1e+2") == ("cvb", "noise")
    assert answers("ignore:distance=cosine", "cvb+noise:std=1e+2") == ("cvb",)  # by a distance of its own
    assert answers("dlg", "precode") == ()


def test_what_an_attack_answers_depends_on_the_whole_defence():
    """A formula that one other part touches is exact no more; a search for masks finds none where there is none."""
    assert answers("first-layer", "dropout+clip:max_norm=1") == ("dropout", "clip")
    assert answers("first-layer", "dropout+prune:share=0.9") == ()
    assert answers("spear", "precode+noise:std=0.1") == ()
    assert answers("dropout-inversion", "prune:share=0.9") == ()
    assert answers("dropout-inversion", "prune:share=0.9", drops=True) == ("prune",)
    assert answers("noise-restoring", "noise:std=0.1") == ()


@pytest.mark.parametrize(
    ("defence", "whole", "left"),
    [
        ("dropout+prune:share=0.9", "dropout-inversion", ()),
        ("precode+dropout", "dropout-inversion", ()),
        ("cvb+dropout+quantise:bits=4+noise:std=0.1", "dropout-inversion", ()),
        ("precode+prune:share=0.5", "noise-restoring", ()),
        ("cvb+ppp:std=0.1+clip:max_norm=1", "noise-restoring", ()),
        ("soteria+noise:std=0.1", "defence-matched", ()),
        ("precode+prune:share=0.5+sign", "ignore", ()),
        ("precode+noise:std=0.1+sign", None, ("sign",)),
        ("dp:max_norm=1,noise_multiplier=1", None, ("dp",)),
    ],
)
def test_one_attack_knows_the_whole_defence_and_comes_first_or_none_does(defence, whole, left):
    assert unanswerable(defence) == left
    found = attacks_for(victim_of(tiny.convnet, bottleneck=True), defence=defence)
    knows_all = [one.spec for one in found if answers(one.spec, defence) == parts_of(defence)]
    assert (whole in knows_all) == bool(whole)
    assert [one.spec for one in found][: len(knows_all)] == knows_all
    asked = [one for one in found if one.role == "adaptive" or left == parts_of(defence)]
    assert asked
    assert all(("nothing-answers" in one.reason_codes) == bool(left) for one in asked)


@pytest.mark.parametrize("defence", ["precode", "dropout", "clip", "central-dp"])
def test_first_layer_inversion_answers_what_it_says(defence):
    """The image is exact whatever the defence does: that is what ``answers`` claims."""
    from fl_precode.defences.registry import apply_defence, gradient_defence
    from fl_precode.randomness.seeding import seeded

    plain = victim_of()
    scaling = {"clip": "clip:max_norm=0.01", "central-dp": "central-dp:clip=0.01"}
    model = apply_defence("none" if defence in scaling else defence, plain.model, SPEC, seed=0)
    victim = tiny.victim(model, SPEC)
    assert defence in ATTACKS["first-layer"].answers
    victim.model.train()
    with seeded(0):
        seen = tiny.observe(victim, X, [0])
        chain = gradient_defence(scaling.get(defence, defence))
        update = seen.update
        if chain is not None:
            generator = torch.Generator().manual_seed(0)
            update = chain(update, generator=generator, model=victim.model, batch=(X, torch.tensor([0])))
    victim.model.eval()
    (one,) = build_attack("first-layer")(
        victim, [replace(seen, update=update)], generator=torch.Generator().manual_seed(0)
    )
    assert torch.allclose(one.inputs, X, rtol=0, atol=1e-8)
