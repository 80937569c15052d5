from __future__ import annotations

import re

import pytest

from attacker.report.verdict import Finding, overall, verdicts
from tests.attacker.records import ADAPTIVE, FIRST, PLAIN, federation, record, summary

PAIR = [federation("f1"), federation("f2", "precode")]
WORKS = summary("f1", PLAIN, 4)


def last(federations, summaries, **changes):
    return verdicts(record(federations, summaries, **changes))[-1]


def test_rule_1_no_attack_fits():
    reasons = ["the first layer is a Conv2d"]
    found = last([federation("f1")], [summary("f1", FIRST, None, 0, not_applicable=4, reasons=reasons)])
    assert found.finding is Finding.NOT_ATTACKED
    assert "first-layer inversion: the first layer is a Conv2d" in found.sentence


def test_rule_1_attacks_that_all_failed_are_no_evidence():
    found = last([PAIR[1]], [summary("f2", PLAIN, 0, failed=4, reasons=["RuntimeError: no memory"])])
    assert found.finding is Finding.NOT_ATTACKED
    assert "no memory" in found.sentence


def test_rule_2_without_truth_the_sentence_says_what_cannot_be_known():
    found = last([federation("f1", truth_known=False)], [summary("f1", PLAIN, None)])
    assert found.finding is Finding.UNKNOWN
    assert "is not known" in found.sentence
    assert "no similarity and no success rate" in found.sentence


def test_rule_3_images_that_are_all_alike():
    found = last(PAIR, [summary("f2", PLAIN, 4, baseline_successes=4)])
    assert found.finding is Finding.NO_MEASURE
    assert "their average, which needs no update" in found.sentence


def test_rule_4_undefended_leak():
    found = last([PAIR[0]], [summary("f1", PLAIN, 3)])
    assert found.finding is Finding.LEAKS
    assert found.sentence == (
        "Undefended LeNet leaks: 3 of 4 images came back by Inverting Gradients "
        "(SSIM >= 0.6; 95 % interval 30 to 95 %)."
    )


def test_rule_4_leak_despite_the_defence_through_the_first_layer():
    pair = [federation("f1", model="mlp"), federation("f2", "precode", model="mlp")]
    found = last(pair, [summary("f1", FIRST, 4), summary("f2", FIRST, 4), summary("f2", PLAIN, 0)])
    assert found.finding is Finding.LEAKS_DESPITE
    assert found.sentence == (
        "PRECODE does not stop the leak on MLP: 4 of 4 images came back by first-layer inversion (SSIM >= 0.6; "
        "95 % interval 51 to 100 %). The gradient of the first layer contains the image exactly, and PRECODE sits "
        "behind that layer. Inverting Gradients alone brought back 0 of 4 images and would have suggested that the "
        "defence works."
    )


def test_rule_5_nothing_from_an_undefended_model_means_too_weak():
    found = last([PAIR[0]], [summary("f1", PLAIN, 0)])
    assert found.finding is Finding.TOO_WEAK
    assert "too weak to conclude anything, about this model or about a defence on it" in found.sentence


@pytest.mark.parametrize("other", [[], [federation("f1", model="mlp")], [federation("f1", dataset="digits")]])
def test_rule_6_nothing_to_compare_with(other):
    found = last([*other, PAIR[1]], [WORKS, summary("f2", PLAIN, 0)])
    assert found.finding is Finding.NO_COMPARISON
    assert "There is no undefended run of the same model" in found.sentence


@pytest.mark.parametrize("undefended", [summary("f1", PLAIN, 0), summary("f1", FIRST, 4)])
def test_rule_7_an_attack_that_fails_undefended_says_nothing_about_the_defence(undefended):
    found = last(PAIR, [undefended, summary("f2", PLAIN, 0)])
    assert found.finding is Finding.TOO_WEAK
    assert "too weak to conclude anything about the defence" in found.sentence


def test_rule_8_a_plain_attack_that_is_stopped_is_no_evidence_of_protection():
    found = last(PAIR, [WORKS, summary("f2", PLAIN, 0)])
    assert found.finding is Finding.PLAIN_STOPPED
    assert found.sentence == (
        "PRECODE stops the plain attack (Inverting Gradients) on LeNet: 0 of 4 images came back (95 % interval 0 to "
        "49 %), against 4 of 4 images without the defence. This attack ignores the defence; no adaptive attack was "
        "run, so this is not evidence of protection."
    )


def test_rule_8_with_an_adaptive_attack():
    found = last(PAIR, [WORKS, summary("f2", PLAIN, 0), summary("f2", ADAPTIVE, 0)])
    assert found.finding is Finding.ADAPTIVE_STOPPED
    assert (
        "Attacks that know the defence (Ignore) brought none back either; a stronger one still might" in found.sentence
    )


@pytest.mark.parametrize("adaptive", [summary("f2", ADAPTIVE, None, 0), summary("f2", ADAPTIVE, 0, failed=4)])
def test_rule_8_an_adaptive_attack_that_did_not_work_out_is_none(adaptive):
    assert last(PAIR, [WORKS, summary("f2", PLAIN, 0), adaptive]).finding is Finding.PLAIN_STOPPED


@pytest.mark.parametrize(("answers", "adaptive"), [(["cvb", "dropout"], False), (["precode"], True), ([], True)])
def test_rule_8_an_adaptive_attack_counts_against_the_defences_that_it_answers(answers, adaptive):
    summaries = [WORKS, summary("f2", PLAIN, 0), summary("f2", ADAPTIVE, 0)]
    whole = record(PAIR, summaries)
    described = [one.model_copy(update={"answers": answers}) if one.spec == ADAPTIVE else one for one in whole.attacks]
    found = verdicts(whole.model_copy(update={"attacks": described}))[-1]
    assert found.finding is (Finding.ADAPTIVE_STOPPED if adaptive else Finding.PLAIN_STOPPED)


def test_a_defence_that_was_not_announced_is_not_taken_for_none():
    found = last([PAIR[0], federation("f2", "unknown")], [WORKS, summary("f2", PLAIN, 2)])
    assert found.finding is Finding.LEAKS_DESPITE
    assert found.sentence.startswith("A defence that was not announced does not stop the leak on LeNet")


def test_cautions():
    found = last(PAIR, [summary("f2", PLAIN, 2, baseline_successes=1), summary("f2", FIRST, 0, failed=2)])
    assert "average training image alone reaches SSIM >= 0.6 on 1 of these images" in found.cautions[0]
    assert "first-layer inversion on 2 image(s)" in found.cautions[1]


def test_no_rule_ever_promises_safety():
    for found in _every_finding():
        assert not re.search(r"\b(safe|protects|protected|secure)\b", found.sentence, re.IGNORECASE)


def _every_finding():
    all_of_them = [last([PAIR[0]], [summary("f1", PLAIN, n)]) for n in (0, 4)] + [
        last(PAIR, [WORKS, summary("f2", PLAIN, 0)]),
        last(PAIR, [WORKS, summary("f2", PLAIN, 0), summary("f2", ADAPTIVE, 0)]),
        last(PAIR, [WORKS, summary("f2", PLAIN, 1)]),
        last([PAIR[1]], [summary("f2", PLAIN, 0)]),
        last([PAIR[1]], [summary("f2", PLAIN, None)]),
        last([PAIR[1]], [summary("f2", PLAIN, 1, baseline_successes=4)]),
        last([PAIR[1]], []),
    ]
    assert {one.finding for one in all_of_them} == set(Finding)
    return all_of_them


def test_the_first_sentence_of_the_page():
    found = {one.finding: one for one in _every_finding()}
    leak, despite = found[Finding.LEAKS], found[Finding.LEAKS_DESPITE]
    stopped, weak = found[Finding.PLAIN_STOPPED], found[Finding.TOO_WEAK]
    assert overall([leak, stopped, leak, despite]) == (
        "Training images came back from three of the four federations audited; in one the attacks were stopped, which "
        "is no proof of protection."
    )
    assert overall([leak, despite]) == "Training images came back from all two federations audited."
    assert overall([weak, weak]) == (
        "Training images came back from none of the two federations audited; about two nothing can be concluded."
    )
    assert overall([leak]) == "Training images came back from this federation."
    assert overall([stopped]) == "The attacks tried were stopped, which is no proof of protection."
    assert overall([weak]) == "Nothing can be concluded about this federation."
