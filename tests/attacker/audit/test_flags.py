"""Every flag: what raises it, and what nearly does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attacker.audit.record.flag_sentences import FLAGS
from attacker.audit.record.schema import AttackDescription, PlannedAttack, UpdateFacts
from attacker.audit.record.trials import share_interval
from attacker.audit.verdict.flags import CHECKS, LARGEST_SHARE, flags
from tests.attacker.records import ADAPTIVE, FIRST, PLAIN, each, federation, rows, summary, told

PAIR = [federation("f1"), federation("f2", "precode")]
CONTROL = summary("f1", PLAIN, 64, 64)
HELD = [CONTROL, summary("f2", PLAIN, 0, 64), summary("f2", ADAPTIVE, 0, 64)]


def raised(summaries=HELD, federations=PAIR, **changes):
    found = flags(told(federations, summaries, **changes))
    return [(one.federation, one.name, one.attack) for one in found]


def names(*arguments, **changes):
    return [name for federation, name, _ in raised(*arguments, **changes) if federation == "f2"]


def facts(**changes):
    return UpdateFacts.model_validate({"random": False, "buffers_withheld": False, "steps": 1} | changes)


def with_facts(**changes):
    return [PAIR[0], federation("f2", "precode", facts=facts(**changes))]


def test_an_audit_that_did_everything_has_no_flag():
    assert raised() == []


def test_the_docs_describe_every_flag_and_no_other():
    text = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "flags.md").read_text()
    described = re.findall(r"^\| `([a-z-]+)` \| (yes|no) ", text, re.MULTILINE)
    assert {name: weak == "yes" for name, weak in described} == {name: kind.weak for name, kind in FLAGS.items()}
    assert all(kind.phrase in text for kind in FLAGS.values())


def test_no_adaptive_attack():
    assert "no-adaptive-attack" in names(HELD[:2])
    failed = summary("f2", ADAPTIVE, 0, 64, failed=64)
    assert "no-adaptive-attack" in names([*HELD[:2], failed])
    assert "no-adaptive-attack" not in names([CONTROL, summary("f2", PLAIN, 3, 64)])  # it leaks anyway


@pytest.mark.parametrize(
    ("defence", "answers", "flagged"),
    [
        ("precode", ["precode"], False),
        ("precode", ["cvb"], True),
        ("precode+noise:std=0.01", ["precode"], True),
        ("precode+noise:std=0.01", ["precode", "noise"], False),
        ("unknown", ["precode"], True),
    ],
)
def test_every_part_of_a_defence_must_be_answered(defence, answers, flagged):
    whole = told([PAIR[0], federation("f2", defence)], HELD)
    described = [
        AttackDescription(spec=one.spec, description="", adaptive=one.spec == ADAPTIVE, answers=answers)
        for one in whole.attacks
    ]
    found = [one.name for one in flags(whole.model_copy(update={"attacks": described}))]
    assert ("no-adaptive-attack" in found) is flagged


def test_a_random_model_that_no_attack_accounts_for():
    assert "model-is-random" not in names(federations=with_facts(random=True))  # an attack answers PRECODE
    assert "model-is-random" in names(HELD[:2], with_facts(random=True))
    assert "model-is-random" not in names(HELD[:2], with_facts(random=None))
    undefended = [federation("f1", facts=facts(random=True))]
    assert ("f1", "model-is-random", None) in raised([CONTROL], undefended, results=rows("f1", PLAIN))
    noisy = [PAIR[0], federation("f2", "noise:std=0.1", facts=facts(random=True))]
    assert "model-is-random" in names(federations=noisy)  # answering noise on the gradient is no answer to it


def test_a_formula_that_randomness_cannot_touch_accounts_for_it():
    whole = told(with_facts(random=True), [*HELD[:2], summary("f2", FIRST, 0, 64)])
    described = [
        one.model_copy(update={"adaptive": True, "oblivious": True, "answers": ["precode"]})
        if one.spec == FIRST
        else one
        for one in whole.attacks
    ]
    assert "model-is-random" in {one.name for one in flags(whole)}
    assert "model-is-random" not in {one.name for one in flags(whole.model_copy(update={"attacks": described}))}


@pytest.mark.parametrize(("back", "flagged"), [(4, False), (3, True)])
def test_searches_are_not_doubted_where_formulas_reconstructed_every_image(back, flagged):
    summaries = [summary("f2", FIRST, back), summary("f2", PLAIN, 0)]
    similar = [0.99] * back + [0.2] * (4 - back)
    results = [*rows("f2", FIRST, ssim=similar), *rows("f2", PLAIN, ssim=0.1, matching_loss=1.0, starts=1)]
    found = set(names(summaries, results=results))
    assert bool(found & {"loss-did-not-fall", "single-start"}) is flagged


@pytest.mark.parametrize(
    ("changes", "flagged"),
    [
        ({}, False),
        ({"matching_loss": 0.95}, True),
        ({"matching_loss": 1.0, "iterations": 1}, True),
        ({"matching_loss": [0.1, 0.1, 1.0, 1.0]}, False),
        ({"matching_loss": [0.1, 1.0, 1.0, 1.0]}, True),
        ({"iterations": 0, "starting_loss": None, "starts": 2}, True),
        ({"iterations": 0, "starting_loss": None, "starts": 0}, False),  # a formula without an exact solution
        ({"iterations": 0, "starting_loss": None, "starts": 0, "outcome": "converged"}, False),
        ({"starting_loss": None}, False),
    ],
)
def test_a_search_that_came_no_closer(changes, flagged):
    found = raised(results=[*rows("f1", PLAIN), *rows("f2", PLAIN), *rows("f2", ADAPTIVE, **changes)])
    assert (("f2", "loss-did-not-fall", ADAPTIVE) in found) is flagged


def test_a_plain_search_that_only_the_defence_stops_is_no_broken_one():
    stuck = rows("f2", PLAIN, matching_loss=1.0)
    works, broken = rows("f1", PLAIN), rows("f1", PLAIN, matching_loss=1.0)
    informed = rows("f2", ADAPTIVE)
    assert "loss-did-not-fall" not in names(results=[*works, *stuck, *informed])
    found = raised(results=[*broken, *stuck, *informed])
    assert ("f2", "loss-did-not-fall", PLAIN) in found
    assert ("f1", "loss-did-not-fall", PLAIN) in found


@pytest.mark.parametrize(
    ("changes", "flagged"),
    [
        ({"late_fall": 0.2}, True),
        ({"late_fall": 0.01}, False),
        ({"late_fall": -0.2}, False),
        ({"late_fall": [0.2, 0.0, 0.0, 0.2]}, True),
        ({"late_fall": [0.2, 0.0, 0.0, 0.0]}, False),
        ({"late_fall": 0.9, "outcome": "converged"}, False),
        ({"late_fall": None}, False),
    ],
)
def test_a_search_that_was_still_on_its_way(changes, flagged):
    found = raised(results=[*rows("f1", PLAIN), *rows("f2", PLAIN), *rows("f2", ADAPTIVE, **changes)])
    assert (("f2", "budget-edge", ADAPTIVE) in found) is flagged


def test_only_the_best_search_of_a_kind_needs_time_enough():
    short = summary("f2", "dlg", 0, 64, mean_ssim=0.1)
    late = rows("f2", "dlg", late_fall=0.5)
    assert "budget-edge" not in names([*HELD, short], results=late)
    best = summary("f2", "dlg", 0, 64, mean_ssim=0.9)
    assert ("f2", "budget-edge", "dlg") in raised([*HELD, best], results=late)


def test_one_start_only():
    once = [*rows("f1", PLAIN), *rows("f2", PLAIN), *rows("f2", ADAPTIVE, starts=1)]
    assert ("f2", "single-start", ADAPTIVE) in raised(results=once)
    another = summary("f2", "noise-restoring", 0, 64)
    described = [
        AttackDescription(spec=spec, description="", adaptive=spec != PLAIN, answers=["precode"] * (spec != PLAIN))
        for spec in (PLAIN, ADAPTIVE, "noise-restoring")
    ]
    more = rows("f2", "noise-restoring", starts=4)
    assert "single-start" not in names([*HELD, another], results=[*once, *more], attacks=described)


@pytest.mark.parametrize(("successes", "flagged"), [(64, False), (40, True)])
def test_one_start_is_enough_for_a_plain_attack_that_always_works_without_the_defence(successes, flagged):
    once = [*each("f2", PLAIN, starts=1), *each("f2", ADAPTIVE)]
    once = [*once, *each("f1", PLAIN, starts=1, ssim=[0.9] * successes + [0.2] * (64 - successes))]
    found = raised([summary("f1", PLAIN, successes, 64), *HELD[1:]], results=once)
    assert (("f2", "single-start", PLAIN) in found) is flagged


def test_plain_attacks_ahead_of_adaptive_ones():
    ahead = [*rows("f2", PLAIN, ssim=0.4), *rows("f2", ADAPTIVE, ssim=0.2)]
    assert "weaker-beats-stronger" in names(results=ahead)
    by_chance = [*rows("f2", PLAIN, ssim=[0.5, 0.1, 0.2, 0.2]), *rows("f2", ADAPTIVE, ssim=[0.1, 0.2, 0.2, 0.2])]
    assert "weaker-beats-stronger" not in names(results=by_chance)
    formula = [*rows("f2", FIRST, ssim=[0.9, 0.9, 0.9, 0.1]), *rows("f2", ADAPTIVE, ssim=0.2)]
    exact = [summary("f2", FIRST, 3), summary("f2", ADAPTIVE, 0)]
    assert "weaker-beats-stronger" not in names(exact, results=formula), "a formula is no weaker attack"
    hardly = [*rows("f2", PLAIN, ssim=0.23), *rows("f2", ADAPTIVE, ssim=0.2)]
    assert "weaker-beats-stronger" not in names(results=hardly)


@pytest.mark.parametrize(
    ("weaker", "stronger", "flagged"),
    [
        ("dlg:iterations=100", "dlg:iterations=300", True),
        ("dlg:iterations=100,restarts=1", "dlg:iterations=100,restarts=4", True),
        ("dlg:iterations=300", "dlg:iterations=100", False),
        ("dlg:iterations=100,restarts=4", "dlg:iterations=300,restarts=1", False),
        ("dlg:iterations=100,history=3", "dlg:iterations=300,history=9", False),
        ("idlg:iterations=100", "dlg:iterations=300", False),
    ],
)
def test_a_small_budget_ahead_of_a_larger_one(weaker, stronger, flagged):
    summaries = [summary("f1", weaker, 0), summary("f1", stronger, 0)]
    results = [*rows("f1", weaker, ssim=0.5), *rows("f1", stronger, ssim=0.3)]
    assert (("f1", "weaker-beats-stronger", stronger) in raised(summaries, PAIR[:1], results=results)) is flagged


@pytest.mark.parametrize(
    ("federations", "flagged"),
    [
        (PAIR, False),
        (PAIR[1:], True),
        ([federation("f1", model="mlp"), PAIR[1]], True),
        ([federation("f1", batch_size=8), PAIR[1]], True),
        ([federation("f1", local_steps=5), PAIR[1]], True),
        ([federation("f1", model="x", control_of="f2"), PAIR[1]], False),
    ],
)
def test_what_counts_as_a_control(federations, flagged):
    assert ("no-control" in names(federations=federations)) is flagged


@pytest.mark.parametrize(
    ("control", "flagged"),
    [(CONTROL, False), (summary("f1", PLAIN, 0, 64), True), (summary("f1", FIRST, 64, 64), True)],
)
def test_the_same_plain_attack_must_work_without_the_defence(control, flagged):
    assert ("control-not-reconstructed" in names([control, *HELD[1:]])) is flagged


def test_an_undefended_model_that_is_not_reconstructed():
    assert raised([summary("f1", PLAIN, 0, 64)], PAIR[:1], results=[]) == [("f1", "control-not-reconstructed", None)]


def test_controls_have_no_flags_of_their_own():
    pair = [federation("f1", control_of="f2"), PAIR[1]]
    assert {one for one, _, _ in raised([summary("f1", PLAIN, 0, 64), *HELD[1:]], pair)} == {"f2"}


@pytest.mark.parametrize(("successes", "flagged"), [(3, True), (5, True), (31, True), (32, False)])
def test_a_control_that_works_too_rarely_to_tell(successes, flagged):
    found = raised([summary("f1", PLAIN, successes, 64), *HELD[1:]])
    assert (("f2", "control-hardly-reconstructed", PLAIN) in found) is flagged


@pytest.mark.parametrize(("images", "flagged"), [(64, False), (60, False), (59, True), (4, True)])
def test_too_few_victims(images, flagged):
    summaries = [CONTROL, summary("f2", PLAIN, 0, 64), summary("f2", ADAPTIVE, 0, images)]
    assert ("too-few-victims" in names(summaries)) is flagged
    assert (share_interval(0, images, images)[1] > LARGEST_SHARE) is flagged
    one = [CONTROL, summary("f2", PLAIN, 1, 64), summary("f2", ADAPTIVE, 0, images)]
    assert "too-few-victims" not in names(one)  # a claim that it leaks needs one


def test_images_on_which_an_attack_failed_were_not_attacked():
    summaries = [CONTROL, summary("f2", PLAIN, 0, 64), summary("f2", ADAPTIVE, 0, 64, failed=6)]
    assert "too-few-victims" in names(summaries)
    assert ("f2", "attack-failed", ADAPTIVE) in raised(summaries)
    assert "attack-failed" not in names([*HELD[:2], summary("f2", ADAPTIVE, 0, 64, failed=1)])


@pytest.mark.parametrize(
    ("knowledge", "accuracy", "flagged"),
    [
        ("granted", None, False),
        ("granted", 0.0, True),
        ("recovered", None, True),
        ("recovered", 1.0, False),
        ("recovered", [1.0, 1.0, 0.0, 1.0], True),
    ],
)
def test_labels(knowledge, accuracy, flagged):
    federations = [federation("f1", labels=knowledge), federation("f2", "precode", labels=knowledge)]
    results = [*rows("f2", PLAIN, label_accuracy=1.0), *rows("f2", ADAPTIVE, label_accuracy=accuracy)]
    assert (("f2", "labels-unknown", ADAPTIVE) in raised(federations=federations, results=results)) is flagged


def test_an_analytic_attack_needs_no_labels():
    federations = [federation("f1", labels="recovered"), federation("f2", "precode", labels="recovered")]
    exact = rows("f2", FIRST, iterations=0, starts=0, outcome="converged", starting_loss=None, late_fall=None)
    found = raised([*HELD, summary("f2", FIRST, 0, 64)], federations, results=exact)
    assert ("f2", "labels-unknown", PLAIN) in found
    assert ("f2", "labels-unknown", FIRST) not in found


def test_what_is_known_of_the_updates():
    assert "buffers-withheld" in names(federations=with_facts(buffers_withheld=True))
    assert "multi-step-update" in names(federations=with_facts(steps=5))
    assert "multi-step-update" in names(federations=with_facts(steps=None))
    assert names(federations=with_facts()) == []
    assert not FLAGS["multi-step-update"].weak
    older = [PAIR[0], federation("f2", "precode", protocol="fedavg", local_steps=None, local_epochs=2)]
    assert "multi-step-update" in names(federations=older)


def test_what_was_left_out_for_lack_of_time():
    def planned(status, role="adaptive", identifier="f2"):
        return PlannedAttack(
            federation=identifier, attack="noise-restoring", role=role, status=status, reason="it takes 3 h",
            updates=64, iterations=100, expected_seconds=1e4,
        )  # fmt: skip

    assert ("f2", "attack-left-out", "noise-restoring") in raised(plan=[planned("over_budget")])
    assert names(plan=[planned("not_applicable"), planned("over_budget", "plain"), planned("refused")]) == []


def test_doubts_and_damage():
    doubted = [PAIR[0], federation("f2", "precode", doubts=["no noise is in it"])]
    assert "defence-doubted" in names(federations=doubted)
    damaged = [PAIR[0], federation("f2", "precode", tape_problems=["a.safetensors: was altered"])]
    assert "tape-damaged" in names(federations=damaged)


def test_without_truth_only_what_the_searches_show_is_flagged():
    unknown = [summary("f2", PLAIN, None), summary("f2", ADAPTIVE, None)]
    results = rows("f2", ADAPTIVE, matching_loss=1.0, ssim=None, baseline_ssim=None)
    assert names(unknown, results=results) == ["loss-did-not-fall"]


def test_flags_are_a_pure_function_and_every_rule_is_used():
    whole = told(PAIR, HELD)
    before = whole.model_dump_json()
    assert flags(whole) == flags(whole)
    assert whole.model_dump_json() == before
    assert len(CHECKS) == len(set(CHECKS)) == 31
