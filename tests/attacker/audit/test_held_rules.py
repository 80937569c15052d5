"""What "held" takes, and what the verdict's number is: made records, drawn at random and by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacker.audit.record.identification import rank_summaries
from attacker.audit.record.naming import identified_in
from attacker.audit.record.schema import AssumptionEntry, AttackDescription, UpdateFacts, VictimImage, parts_of
from attacker.audit.record.trials import share_interval, trials
from attacker.audit.record.view import views
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import verdicts
from attacker.cli.audit import show_results
from attacker.metrics.intervals import exact_interval
from attacker.report.verdict import overall
from attacker.report.verdict import verdicts as page
from tests.attacker.records import each, federation, record, rows, summary, told

PLAIN, MASKS, MATCHED, BOTH = "inverting-gradients:restarts=2", "dropout-inversion", "defence-matched", "both-at-once"
ANSWERS = {PLAIN: [], MASKS: ["dropout"], MATCHED: ["noise", "prune"], BOTH: ["dropout", "noise", "prune"], "dlg": []}
DEFENCES = ("dropout:p=0.8+prune:share=0.97", "prune:share=0.9+dropout", "noise:std=1e+2+dropout", "noise:std=0.1")


def described(*specs):
    return [
        AttackDescription(spec=one, description="", adaptive=bool(ANSWERS[one]), answers=ANSWERS[one]) for one in specs
    ]


def audit(defence=DEFENCES[0], *, adaptive=(BOTH,), control=64, images=64, results=(), defended=(), **changes):
    """A defended federation, from which nothing was reconstructed, and its control."""
    federations = [federation("f1", control_of="f2"), federation("f2", defence, **dict(defended))]
    summaries = [summary("f1", PLAIN, min(control, images), images)]
    summaries += [summary("f2", one, 0, images) for one in (PLAIN, *adaptive)]
    return told(federations, summaries, results=list(results), attacks=described(PLAIN, *adaptive), **changes)


def said(whole):
    return next(one for one in verdicts(whole) if one.federation == "f2")


def names(whole):
    return {one.name for one in flags(whole) if one.federation == "f2"}


def held(whole):
    return said(whole).verdict == "held against everything tried"


@pytest.mark.parametrize("defence", DEFENCES[:3])
def test_two_attacks_that_know_half_each_are_not_one_that_knows_the_whole_defence(defence):
    halves = audit(defence, adaptive=(MASKS, MATCHED))
    assert not held(halves)
    assert "no-adaptive-attack" in names(halves)
    assert "dropout by dropout inversion" in next(iter(flags(halves))).sentence
    assert held(audit(defence, adaptive=(MASKS, MATCHED, BOTH)))


def test_the_plus_of_a_number_joins_no_parts():
    assert held(audit("noise:std=1e+2", adaptive=(MATCHED,)))


@pytest.mark.parametrize(("control", "convincing"), [(0, False), (5, False), (31, False), (32, True), (64, True)])
def test_a_control_that_is_hardly_reconstructed_is_none(control, convincing):
    whole = audit(control=control)
    assert held(whole) is convincing
    if not convincing:
        assert {"control-hardly-reconstructed", "control-not-reconstructed"} & names(whole)


def test_a_control_whose_successes_a_guess_has_too_is_none():
    easy = each("f1", PLAIN, ssim=0.9, baseline_ssim=0.3, guess_ssim=0.89, guess="another image of the class")
    whole = audit(results=easy)
    assert whole.summaries[0].successes == 64  # as somebody counted who forgot the guess
    assert not held(whole)
    assert "control-not-reconstructed" in names(whole)


@pytest.mark.parametrize("near", [1, 64])
def test_near_misses_are_named_and_forbid_held(near):
    close = each("f2", BOTH, ssim=[0.599] * near + [0.2] * (64 - near), guess_ssim=0.3)
    whole = audit(results=close)
    assert not held(whole)
    assert "near-miss" in names(whole)
    assert f"{near} of 64 images came close to what counts, up to SSIM 0.599" in said(whole).sentence


def test_results_that_are_all_nearer_than_every_guess_are_a_leak_in_part():
    whole = audit(results=each("f2", PLAIN, ssim=0.45, guess_ssim=0.3, guess="class mean"))
    found = said(whole)
    assert found.verdict == "leaks in part"
    assert (
        "what Inverting Gradients, which ignores the defence, made of the updates is nearer to the truth than every "
        "guess without them on 64 of 64 images: SSIM 0.45 on average, 0.15 more than the best guess."
    ) in found.sentence
    assert overall([one for one in page(whole) if one.federation == "f2"]).startswith("This federation leaks in part")


@pytest.mark.parametrize(
    "changes",
    [
        {"ssim": 0.36, "guess_ssim": 0.3},  # a trifle
        {"ssim": [0.9, *[0.2] * 63], "guess_ssim": [0.88, *[0.3] * 63]},  # one lucky image
        {"ssim": 0.45, "guess_ssim": None, "baseline_ssim": 0.3},  # the mean image alone is easily beaten
        {"ssim": [0.5] * 38 + [0.2] * 26, "guess_ssim": 0.3},  # hardly more than half
        {"ssim": 0.45, "guess_ssim": 0.3, "node": "7"},  # one update
    ],
)
def test_what_is_no_leak_in_part(changes):
    whole = audit(results=each("f2", PLAIN, **changes))
    assert said(whole).verdict in ("not shown to leak", "held against everything tried")


def test_one_update_of_many_images_is_one_trial():
    one = [row for spec in (PLAIN, BOTH) for row in rows("f2", spec, 64)]
    whole = audit(results=[*rows("f1", PLAIN, 64, ssim=0.9), *one])
    assert not held(whole)
    flag = next(one for one in flags(whole) if one.name == "too-few-victims")
    assert "they count as 1 independent trial (they come from 1 update of 1 client)" in flag.sentence
    control = next(one for one in verdicts(whole) if one.federation == "f1")
    assert "The 64 images count as 1 independent trial" in " ".join(control.cautions)
    assert "64 of 64 images were reconstructed by Inverting Gradients (SSIM >= 0.6; 95 % interval 3 to 100 %)" in (
        control.sentence
    )


def test_images_that_are_attacked_again_are_no_new_ones():
    victims = [
        VictimImage(
            id=f"f2-u{n}-i0", federation="f2", round=1, node=str(n), image=0, label=1, label_name=None, truth=None,
            same_as=f"f2-u{n % 8}-i0" if n >= 8 else None,
        )
        for n in range(64)
    ]  # fmt: skip
    assert held(audit())
    whole = audit(victims=victims)
    assert not held(whole)
    assert (
        "they count as 8 independent trials (they come from 64 updates of 64 clients)"
        in next(one for one in flags(whole) if one.name == "too-few-victims").sentence
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12), st.randoms())
@settings(max_examples=40, deadline=None)
def test_trials_are_no_more_than_updates_and_images_and_know_no_order(pairs, rng):
    made = rows("f1", PLAIN, len(pairs), node=[str(update) for update, _ in pairs])
    same = {row.victim_id: str(image) for row, (_, image) in zip(made, pairs, strict=True)}
    found = trials(made, same)
    assert 1 <= found <= min(len({one for one, _ in pairs}), len({one for _, one in pairs}))
    rng.shuffle(made)
    assert trials(made, same) == found
    assert trials(made, {}) == len({one for one, _ in pairs})


def test_intervals_go_by_trials_and_are_exact():
    assert share_interval(60, 64, 64) == exact_interval(60 / 64, 64)
    low, high = share_interval(60, 64, 8)
    assert low < share_interval(60, 64, 64)[0] < share_interval(60, 64, 64)[1] < high


def leaking(*back, images=64, **changes):
    """An undefended federation: of each attack, which images it reconstructs."""
    results = [
        row
        for spec, own in back
        for row in each("f1", spec, images, ssim=[0.98 if place in own else 0.2 for place in range(images)])
    ]
    summaries = [summary("f1", spec, len(own), images) for spec, own in back]
    return record([federation("f1", **changes)], summaries, results=results, attacks=described(*dict(back)))


def test_the_number_is_the_union_and_the_name_the_strongest():
    found = verdicts(leaking((PLAIN, range(30)), ("dlg", range(28, 60))))[0]
    assert found.sentence == (
        "Undefended LeNet leaks: 60 of 64 images were reconstructed by at least one attack (SSIM >= 0.6; 95 % "
        "interval 85 to 98 %). The strongest, DLG, reconstructed 32 by itself."
    )


def test_58_of_64_go_before_2_of_2():
    whole = leaking((PLAIN, range(58)))
    few = each("f1", "dlg", 2, ssim=0.99)
    whole = whole.model_copy(
        update={"results": [*whole.results, *few], "summaries": [*whole.summaries, summary("f1", "dlg", 2, 2)]}
    )
    assert "58 of 64 images were reconstructed by Inverting Gradients (SSIM" in verdicts(whole)[0].sentence


def test_plain_and_adaptive_attacks_are_told_apart():
    adaptive = each("f2", BOTH, ssim=[0.9] * 50 + [0.1] * 14)
    few = each("f2", PLAIN, ssim=[0.9] * 2 + [0.1] * 62)
    found = said(audit(results=[*adaptive, *few]))
    assert found.verdict == "leaks"
    assert "50 of 64 images were reconstructed by both-at-once, which knows it (SSIM" in found.sentence
    assert "Attacks that ignore the defence reconstructed 2 of 64 images (Inverting Gradients)." in found.sentence
    found = said(audit(results=adaptive))
    assert found.verdict == "leaks to an adaptive attacker"
    assert "Inverting Gradients alone reconstructed none and would have suggested" in found.sentence
    found = said(audit(results=adaptive, control=3))  # an attack that fails without the defence suggests nothing
    assert "would have suggested" not in found.sentence


def test_updates_that_drop_out_stay_in_the_number_and_are_named():
    gone = each("f2", BOTH, outcome=["iteration_limit"] * 3 + ["not_applicable"] * 61, ssim=[0.9] * 3 + [None] * 61)
    whole = record([federation("f2", DEFENCES[0])], [summary("f2", BOTH, 3, 3)], results=gone, attacks=described(BOTH))
    assert "3 of 64 images were reconstructed" in said(whole).sentence
    assert "victims-left-out" in names(whole)


def test_images_that_there_was_no_time_for_are_named():
    victims = [
        VictimImage(
            id=f"f2-u{n}-i0", federation="f2", round=1, node=str(n), image=0, label=1, label_name=None, truth=None
        )
        for n in range(70)
    ]
    assert "victims-left-out" in names(audit(victims=victims))
    assert "victims-left-out" not in names(audit(victims=victims[:66]))


@pytest.mark.parametrize(("cut", "flagged"), [(0, False), (3, False), (4, True), (64, True)])
def test_a_search_that_the_budget_ended_forbids_held(cut, flagged):
    whole = audit(results=each("f2", BOTH, cut=[place < cut for place in range(64)]))
    assert ("search-cut" in names(whole)) is flagged
    assert held(whole) is not flagged


@pytest.mark.parametrize("code", ["loss", "loss-assumed-bce"])
def test_a_loss_that_nobody_announced_is_a_flag(code):
    assumed = [AssumptionEntry(code=code, sentence="It is taken to be cross-entropy.", doubt="Another.", updates=64)]
    whole = audit(defended={"assumptions": assumed})
    assert "loss-assumed" in names(whole)
    assert not held(whole)
    assert "loss-assumed" not in names(audit())
    exact = [*each("f2", PLAIN, starts=0, iterations=0, starting_loss=None, ssim=0.2)]
    formula = audit(defended={"assumptions": assumed}, adaptive=(), results=exact)
    assert "loss-assumed" not in names(formula)  # a formula replays no loss


NOISY = {"facts": UpdateFacts(random=False, buffers_withheld=False, steps=1, noise_floors={"cosine": 0.6, "l2": 540.0})}


@pytest.mark.parametrize(
    ("changes", "flagged"),
    [
        ({"starting_loss": 600.0, "matching_loss": 560.0}, False),  # two thirds of the way that there is
        ({"starting_loss": 600.0, "matching_loss": 598.0}, True),
        ({"starting_loss": 545.0, "matching_loss": 545.0}, False),  # it stands where the true images stand
        ({"starting_loss": 600.0, "matching_loss": 598.0, "ssim": [0.9] * 32 + [0.2] * 32}, False),
        ({"starting_loss": 0.95, "matching_loss": 0.94, "reason": ""}, True),  # by the cosine
        ({"starting_loss": 0.95, "matching_loss": 0.91, "reason": ""}, False),
        ({"starting_loss": None, "matching_loss": 0.95, "reason": "", "starts": 0, "iterations": 0}, False),
    ],
)
def test_a_search_under_noise_is_judged_by_the_way_to_the_noise(changes, flagged):
    results = each("f2", MATCHED, **({"reason": "matched by l2"} | changes))
    whole = audit("noise:std=0.03", adaptive=(MATCHED,), results=results, defended=NOISY)
    found = {one.attack for one in flags(whole) if one.name == "loss-did-not-fall"}
    assert (MATCHED in found) is flagged


SPECS = (PLAIN, MASKS, MATCHED, BOTH)


@st.composite
def places(draw, images):
    """Fields of results that were told from other images, or not."""
    candidates = draw(st.sampled_from([None, 150, 1001]))
    first = draw(st.sampled_from([0, 1, images // 8, images]))
    if candidates is None:
        return {}
    return {
        "candidates": candidates,
        "candidates_of_class": candidates,
        "rank": [1.0 if place < first else 70.0 for place in range(images)],
        "rank_tied": 0,
        "identified": [candidates > 1000 and place < first for place in range(images)],
    }


@st.composite
def records(draw):
    """Any audit of a few attacks, with and without a control, in batches, with and without guesses."""
    defence = draw(st.sampled_from([*DEFENCES, "none", "unknown", "precode"]))
    images, batch = draw(st.sampled_from([(1, 1), (4, 1), (64, 1), (64, 64), (64, 8)]))
    federations, summaries, results = [], [], []
    for identifier, own in (("f1", "none"), ("f2", defence)):
        if identifier == "f1" and draw(st.booleans()):
            continue
        federations.append(federation(identifier, own, control_of="f2" if identifier == "f1" else None))
        specs = (PLAIN,) if identifier == "f1" else draw(st.lists(st.sampled_from(SPECS), unique=True, max_size=4))
        for spec in specs:
            best = draw(st.sampled_from([0.05, 0.3, 0.599, 0.62, 0.95]))
            back = draw(st.sampled_from([0, 1, images // 2, images]))
            guess = draw(st.sampled_from([None, 0.1, 0.61, 0.94]))
            made = each(
                identifier, spec, images, node=[str(place // batch) for place in range(images)], guess_ssim=guess,
                ssim=[best if place < back else 0.05 for place in range(images)], starts=draw(st.sampled_from([1, 2])),
                **draw(places(images)),
            )  # fmt: skip
            results += made
            # Perhaps wrong, as of an older version.
            summaries.append(summary(identifier, spec, back, images, identification=rank_summaries(made, {})))
    return record(federations, summaries, results=results, attacks=described(*SPECS))


@given(records(), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_rules_hold_for_any_record_and_know_no_order(whole, seed):
    raised, found = flags(whole), verdicts(whole)
    for view, one in zip(views(whole), found, strict=True):
        named = identified_in(view)
        if one.verdict == "held against everything tried":
            assert any(set(ANSWERS[own.attack]) >= parts_of(view.federation.defence) for own in view.whole)
            assert view.union.independent >= 61
            assert not view.back()
            assert not view.near_misses
            assert view.control.union.back >= 32
            assert named is None or not named.surest.beyond_chance
        if named is not None and named.naming and view.nothing_reconstructed:
            assert one.verdict == "leaks in part"
            assert f"{named.count} of " in one.sentence
        if view.back():
            assert one.verdict.startswith("leaks")
            assert f"{len(view.back())} of " in one.sentence
    rng = random.Random(seed)
    mixed = {
        field: rng.sample(getattr(whole, field), len(getattr(whole, field)))
        for field in ("federations", "summaries", "results", "attacks")
    }
    other = whole.model_copy(update=mixed)
    by_name = {one.federation: one for one in found}
    assert all(by_name[one.federation] == one for one in verdicts(other))
    assert sorted(map(repr, flags(other))) == sorted(map(repr, raised))


def test_the_commands_table_has_a_row_of_all_attacks(capsys):
    whole = leaking((PLAIN, range(30)), ("dlg", range(28, 60)))
    show_results(whole)
    (row,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("any attack"))
    assert row[2:5] == ["60", "of", "64"]
    show_results(leaking(("dlg", range(3))))
    assert "any attack" not in capsys.readouterr().out
