"""Every rule of the verdict, by its number, and every flag's effect on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attacker.audit.record.flag_sentences import FLAGS
from attacker.audit.record.schema import AuditRecord, Flag
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import verdicts
from tests.attacker.records import ADAPTIVE, FIRST, PLAIN, each, federation, summary, told

PAIR = [federation("f1"), federation("f2", "precode")]
WORKS = summary("f1", PLAIN, 60, 64)
HELD = [WORKS, summary("f2", PLAIN, 0, 64), summary("f2", ADAPTIVE, 0, 64)]


def last(federations, summaries, **changes):
    return verdicts(told(federations, summaries, **changes))[-1]


def test_rule_1_no_attack_fits():
    reasons = ["the first layer is a Conv2d"]
    found = last([federation("f1")], [summary("f1", FIRST, None, 0, not_applicable=4, reasons=reasons)])
    assert found.verdict == "not known"
    assert "first-layer inversion: the first layer is a Conv2d" in found.sentence


def test_rule_1_attacks_that_all_failed_are_no_evidence():
    found = last([PAIR[1]], [summary("f2", PLAIN, 0, failed=4, reasons=["RuntimeError: no memory"])])
    assert found.verdict == "not known"
    assert "no memory" in found.sentence


def test_rule_2_without_truth_the_sentence_says_what_cannot_be_known():
    found = last([federation("f1", truth_known=False)], [summary("f1", PLAIN, None)])
    assert found.verdict == "not known"
    assert "is not known" in found.sentence
    assert "no similarity and no success rate" in found.sentence


def test_rule_4_images_that_are_all_alike():
    found = last(PAIR, [summary("f2", PLAIN, 0, baseline_successes=4)])
    assert found.verdict == "not known"
    assert "a guess without any update, such as their average" in found.sentence


def test_rule_4_images_that_are_all_alike_and_yet_were_reconstructed():
    own = each("f2", PLAIN, 4, ssim=[0.99, 0.75, 0.7, 0.2], baseline_ssim=0.7)
    found = last(PAIR, [summary("f2", PLAIN, 3, baseline_successes=4)], results=own)  # as an older version counted
    assert found.verdict == "leaks"
    assert "1 of 4 images was reconstructed" in found.sentence
    assert "reaches SSIM >= 0.6 on 4 of these images" in found.cautions[-1]
    dull = [one.model_copy(update={"ssim": 0.75}) for one in own]
    assert last(PAIR, [summary("f2", PLAIN, 4, baseline_successes=4)], results=dull).verdict == "not known"


def test_rule_5_undefended_leak():
    found = last([PAIR[0]], [summary("f1", PLAIN, 3)])
    assert found.verdict == "leaks"
    assert found.sentence == (
        "Undefended LeNet leaks: 3 of 4 images were reconstructed by Inverting Gradients "
        "(SSIM >= 0.6; 95 % interval 19 to 99 %)."
    )


def test_rule_5_a_plain_attack_gets_through_the_defence():
    found = last(PAIR, [WORKS, summary("f2", PLAIN, 2), summary("f2", ADAPTIVE, 0)])
    assert found.verdict == "leaks"
    assert found.sentence.startswith(
        "PRECODE does not stop the leak on LeNet: 2 of 4 images were reconstructed by Inverting Gradients, which "
        "ignores it"
    )
    assert "would have suggested" not in found.sentence  # nobody knows whether Ignore works without the defence


@pytest.mark.parametrize(
    ("attack", "back", "row", "says"),
    [
        ("activation-span", 4, {}, "determine each image of a batch exactly, and PRECODE sits behind the activation."),
        ("activation-span", 3, {}, "determine images of a batch one by one, those that were found exactly, and"),
        (
            "patch-embedding",
            4,
            {"outcome": "converged", "matching_loss": [1e-14, 4e-14, 1e-14, 1e-14]},
            "determines the image exactly (relative residual 2e-07 at most), and PRECODE sits behind it.",
        ),
        ("patch-embedding", 3, {"matching_loss": 1e-4}, "gives what noise and rank leave of them, and PRECODE"),
    ],
)
def test_rule_5_the_sentence_says_why_a_formula_brings_images_back(attack, back, row, says):
    results = each("f2", attack, 4, ssim=[0.99] * back + [0.1] * (4 - back), **row)
    found = last(PAIR, [WORKS, summary("f2", attack, back)], results=results)
    assert found.verdict == "leaks"
    assert says in found.sentence


def test_rule_5_a_low_share_may_be_higher():
    stuck = each("f2", ADAPTIVE, 4, matching_loss=1.0)
    found = last(PAIR, [WORKS, summary("f2", PLAIN, 2), summary("f2", ADAPTIVE, 0)], results=stuck)
    assert "The share may be higher still: a search came no closer to the update." in found.sentence
    found = last(PAIR, [WORKS, summary("f2", PLAIN, 4), summary("f2", ADAPTIVE, 0)], results=stuck)
    assert "higher still" not in found.sentence


def test_rule_6_only_an_adaptive_attack_gets_through():
    pair = [federation("f1", model="mlp"), federation("f2", "precode", model="mlp")]
    works = summary("f1", PLAIN, 3)
    whole = told(pair, [summary("f1", FIRST, 4), works, summary("f2", FIRST, 4), summary("f2", PLAIN, 0)])

    def judged(*, oblivious):
        changes = {"adaptive": True, "oblivious": oblivious}
        described = [one.model_copy(update=changes) if one.spec == FIRST else one for one in whole.attacks]
        return verdicts(whole.model_copy(update={"attacks": described}))[-1]

    assert judged(oblivious=True).verdict == "leaks"  # who knows nothing of PRECODE gets the images as well
    found = judged(oblivious=False)
    assert found.verdict == "leaks to an adaptive attacker"
    assert found.sentence == (
        "MLP with PRECODE leaks to an adaptive attacker: 4 of 4 images were reconstructed by first-layer inversion "
        "(SSIM >= 0.6; 95 % interval 40 to 100 %). The gradient of the first layer contains the image exactly, and "
        "PRECODE sits behind that layer. Inverting Gradients alone reconstructed none and would have suggested that "
        "the defence works: without it, half of the images or more are reconstructed that way."
    )


def test_rule_8_held():
    found = last(PAIR, HELD)
    assert found.verdict == "held against everything tried"
    assert found.cautions == []
    assert found.sentence == (
        "PRECODE held against everything tried on LeNet: 0 of 64 images were reconstructed by Inverting Gradients (95 "
        "% interval 0 to 6 %), against 60 of 64 images without the defence. Ignore, which knows the whole "
        "defence, reconstructed none either (95 % interval 0 to 6 %). A stronger attack still might."
    )


@pytest.mark.parametrize("name", FLAGS)
def test_rule_8_every_flag_changes_the_sentence_and_a_weak_one_forbids_held(name):
    raised = Flag(federation="f2", name=name, attack=None, sentence="A reason.", weak=FLAGS[name].weak)
    whole = told(PAIR, HELD)
    found = verdicts(whole, [raised])[-1]
    assert found.verdict == ("not shown to leak" if FLAGS[name].weak else "held against everything tried")
    assert FLAGS[name].phrase in found.sentence
    assert found.cautions == ["A reason."]
    other = raised.model_copy(update={"federation": "f1"})
    assert verdicts(whole, [other])[-1] == verdicts(whole, [])[-1]


@pytest.mark.parametrize(
    ("federations", "summaries"),
    [
        (PAIR[1:], HELD[1:]),  # no control
        (PAIR, [summary("f1", PLAIN, 0, 64), *HELD[1:]]),  # a control that is not reconstructed
        (PAIR, [summary("f1", FIRST, 64, 64), *HELD[1:]]),  # reconstructed by another attack
        (PAIR, HELD[:2]),  # no adaptive attack
        (PAIR, [*HELD[:2], summary("f2", ADAPTIVE, None, 0, not_applicable=64)]),  # one that does not fit
        (PAIR, [*HELD[:2], summary("f2", ADAPTIVE, 0, 64, failed=64)]),  # one that failed
        (PAIR, [WORKS, HELD[2]]),  # no plain attack to compare with
        (PAIR[:1], [summary("f1", PLAIN, 0, 64)]),  # no defence
    ],
)
def test_rule_9_what_is_missing_for_held(federations, summaries):
    assert last(federations, summaries).verdict == "not shown to leak"
    # Even where somebody lost the flags:
    assert verdicts(told(federations, summaries), [])[-1].verdict == "not shown to leak"


def test_rule_9_only_a_flag_says_that_four_victims_are_too_few():
    few = [WORKS, summary("f2", PLAIN, 0), summary("f2", ADAPTIVE, 0)]
    assert last(PAIR, few).verdict == "not shown to leak"
    assert verdicts(told(PAIR, few), [])[-1].verdict == "held against everything tried"


def test_rule_9_names_the_weak_evidence():
    found = last(PAIR, [summary("f1", PLAIN, 4), summary("f2", PLAIN, 0)])
    assert found.sentence == (
        "LeNet with PRECODE on faces: not shown to leak (weak evidence: no attack that knows the whole defence gave a "
        "result; too few images were attacked). 0 of 4 images were reconstructed by Inverting Gradients (95 % "
        "interval 0 to 60 %), against 4 of 4 images without the defence."
    )
    assert len(found.cautions) == 2


def test_a_control_has_a_verdict_of_its_own():
    pair = [federation("f1", control_of="f2"), PAIR[1]]
    control = verdicts(told(pair, HELD))[0]
    assert control.verdict == "leaks"
    weak = verdicts(told(pair, [summary("f1", PLAIN, 0, 64), *HELD[1:]]))
    assert weak[0].verdict == "not shown to leak"
    assert "LeNet with no defence on faces, the control: not shown to leak (weak evidence: the attacks fail" in (
        weak[0].sentence
    )


@pytest.mark.parametrize(("answers", "held"), [(["cvb", "dropout"], False), (["precode"], True), ([], True)])
def test_an_adaptive_attack_counts_against_the_defences_that_it_answers(answers, held):
    whole = told(PAIR, HELD)
    described = [one.model_copy(update={"answers": answers}) if one.spec == ADAPTIVE else one for one in whole.attacks]
    found = verdicts(whole.model_copy(update={"attacks": described}))[-1]
    assert (found.verdict == "held against everything tried") is held


def test_a_defence_that_was_not_announced_is_not_taken_for_none():
    found = last([PAIR[0], federation("f2", "unknown")], [WORKS, summary("f2", PLAIN, 2)])
    assert found.verdict == "leaks"
    assert found.sentence.startswith("A defence that was not announced does not stop the leak on LeNet")


def test_the_average_image_is_a_caution():
    found = last(PAIR, [WORKS, summary("f2", PLAIN, 2, baseline_successes=1)])
    assert "the average training image, already reaches SSIM >= 0.6 on 1 of these images" in found.cautions[-1]


def test_a_record_of_the_first_version_gets_verdicts_too():
    new = {"starting_loss", "late_fall", "starts", "guess_ssim", "guess", "method", "recovered_label"}
    for summaries, verdict in ((HELD, "held against everything tried"), (HELD[:2], "not shown to leak")):
        content = told(PAIR, summaries).model_dump()
        content["results"] = [
            {key: value for key, value in row.items() if key not in new} for row in content["results"]
        ]
        for field in ("assumptions", "facts", "doubts", "control_of", "tape_identity"):
            for one in content["federations"]:
                del one[field]
        assert verdicts(AuditRecord.model_validate(content))[-1].verdict == verdict


def every_sentence():
    cases = [
        ([PAIR[0]], [summary("f1", PLAIN, 0)]),
        ([PAIR[0]], [summary("f1", PLAIN, 4)]),
        (PAIR, HELD),
        (PAIR, HELD[:2]),
        (PAIR, [WORKS, summary("f2", PLAIN, 1)]),
        (PAIR, [WORKS, summary("f2", ADAPTIVE, 1)]),
        ([PAIR[1]], [summary("f2", PLAIN, None)]),
        ([PAIR[1]], [summary("f2", PLAIN, 1, baseline_successes=4)]),
        ([PAIR[1]], []),
    ]
    return [last(*case) for case in cases]


def test_no_rule_ever_promises_safety():
    found = every_sentence()
    assert {one.verdict for one in found} == {
        "leaks", "leaks to an adaptive attacker", "not shown to leak", "held against everything tried", "not known",
    }  # fmt: skip
    for one in found:
        assert not re.search(r"\b(safe|protects|protected|secure)\b", one.sentence, re.IGNORECASE)


def test_the_docs_have_every_rule():
    text = (Path(__file__).resolve().parents[3] / "docs" / "reference" / "flags.md").read_text()
    assert re.findall(r"^\| (\d) \| .* \| \*([a-z ]+?)[ *(]*(?:\(weak evidence: ...\))?\*?", text, re.MULTILINE)
    for verdict in ("not known", "leaks", "leaks to an adaptive attacker", "held against everything tried"):
        assert f"*{verdict}*" in text
    assert "*not shown to leak (weak evidence: ...)*" in text


def test_flags_and_verdicts_agree():
    whole = told(PAIR, HELD[:2])
    assert verdicts(whole) == verdicts(whole, flags(whole))
