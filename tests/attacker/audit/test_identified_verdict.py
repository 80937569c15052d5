"""Whose images they are in flags, verdicts, the gate and the comparison: images that are named never "held"."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy.integrate import trapezoid

from attacker.audit.record.identification import rank_summaries
from attacker.audit.record.naming import identified_in
from attacker.audit.record.schema import AttackDescription, TapeIdentity, VerdictEntry, VictimImage
from attacker.audit.record.view import FederationView
from attacker.audit.scoring.similarity import summarise
from attacker.audit.verdict.ci_gate import Demands, answers
from attacker.audit.verdict.compare import IDENTIFIED, compare
from attacker.audit.verdict.finish import finish_record
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import verdicts
from attacker.report.advice import advice
from attacker.report.compare_page import headline
from attacker.report.pack.decision import decision_sheet
from attacker.report.pack.sacro import attack_results
from attacker.report.pack.tracking import figures
from attacker.report.verdict import overall
from attacker.report.verdict import verdicts as page
from tests.attacker.records import ADAPTIVE, PLAIN, each, federation, record

TAPE = TapeIdentity(sha256="a" * 64, manifest_bytes=9)


def lined_up(first, images, candidates=1001, **changes):
    """Fields of results whose first so many images are first among candidates, and identified where these suffice."""
    ranks = [1.0 if place < first else 300.0 for place in range(images)]
    identified = [place < first and candidates > 1000 for place in range(images)]
    content = {"candidates": candidates, "candidates_of_class": candidates, "rank": ranks, "rank_tied": 0}
    return content | {"rank_chance": 0.5, "identified": identified} | changes


def audit(named, images=64, *, control=True, own=None, **changes):
    """A defended federation that nothing was reconstructed from, with the fields of each attack's results."""
    federations = [federation("f2", "precode", **(own or {}))]
    results = [row for spec, fields in named.items() for row in each("f2", spec, images, **fields)]
    if control:
        federations.insert(0, federation("f1", control_of="f2"))
        results += each("f1", PLAIN, images, ssim=0.9)
    pairs = dict.fromkeys((row.federation, row.attack) for row in results)
    described = [
        AttackDescription(spec=spec, description="", adaptive=spec == ADAPTIVE)
        for spec in dict.fromkeys(spec for _, spec in pairs)
    ]
    summaries = [summarise(identifier, spec, results) for identifier, spec in pairs]
    return record(federations, summaries, results=results, attacks=described, **changes)


def said(whole):
    return next(one for one in verdicts(whole) if one.federation == "f2")


def line(whole):
    return said(whole).lines[0]


def raised(whole):
    return {flag.name: flag for flag in flags(whole) if flag.federation == "f2"}


def found(whole):
    return identified_in(FederationView(record=whole, federation=whole.federations[-1]))


def ten(first, images=64):
    """Ten attacks, of which one puts so many images first."""
    others = {f"dlg:iterations={number}": lined_up(0, images) for number in range(8)}
    return {PLAIN: lined_up(first, images), ADAPTIVE: lined_up(0, images), **others}


def test_one_image_of_64_in_an_audit_of_ten_attacks_is_chance():
    whole = audit(ten(1))
    assert not {"images-identified", "true-images-first"} & set(raised(whole))
    assert said(whole).verdict == "held against everything tried"
    assert "; 1 was first among 1,001 candidates, which may be chance (p = 0.6)." in line(whole).sentence
    assert (line(whole).identified, line(whole).identified_of) == (0, 64)
    assert not found(whole).victims


def test_five_images_of_16_are_a_leak_in_part_and_a_flag():
    whole = audit(ten(5, 16), 16)
    assert said(whole).verdict == "leaks in part"
    assert said(whole).sentence.startswith(
        "LeNet with PRECODE on faces: leaks in part. No image counts as reconstructed (SSIM >= 0.6), and images are "
        "identified. Inverting Gradients, which ignores the defence, identified 5 of 16 images: the true image is the "
        "nearest to its reconstruction among 1,001 candidates (95 % interval 11 to 59 %, p < 0.001)."
    )
    flag = raised(whole)["images-identified"]
    assert not flag.weak
    assert flag.attack == PLAIN
    assert "None was reconstructed" in flag.sentence
    assert line(whole).sentence.startswith(
        "None of 16 images was reconstructed (95 % interval 0 to 21 %), against 100 % without the defence; 5 were "
        "identified among 1,001 candidates (95 % interval 11 to 59 %, p < 0.001). The best guess"
    )
    assert (line(whole).state, line(whole).identified, line(whole).identified_of) == ("leaks in part", 5, 16)
    assert line(whole).identified_chance < 0.001
    assert overall([one for one in page(whole) if not one.control]) == (
        "No image was reconstructed, and 5 of 16 images are identified among others from this federation's updates."
    )


@pytest.mark.parametrize(("attacks", "names"), [(1, True), (5, True), (6, False), (60, False)])
def test_the_rule_allows_for_the_number_of_comparisons(attacks, names):
    """Two of 14 images have a chance of 1.8e-4 at most: six comparisons may show it by chance."""
    specs = [f"dlg:iterations={number}" for number in range(attacks)]
    results = [row for spec in specs for row in each("f2", spec, 14, **lined_up(2 if spec == specs[0] else 0, 14))]
    summaries = [summarise("f2", spec, results) for spec in specs]
    assert 0.001 / 6 < summaries[0].identification[0].chance < 0.001 / 5
    whole = record([federation("f2")], summaries, results=results)
    assert bool(found(whole).naming) is names
    assert (said(whole).verdict == "leaks in part") is names


@pytest.mark.parametrize("measure", ["pixels", "features"])
def test_each_measure_names_images_and_none_is_held(measure):
    fields = lined_up(9, 64)
    if measure == "features":
        fields = lined_up(0, 64, feature_rank=[1.0] * 9 + [300.0] * 55, feature_tied=0)
        fields["feature_identified"] = [place < 9 for place in range(64)]
    whole = audit({PLAIN: {}, ADAPTIVE: fields})
    assert said(whole).verdict == "leaks in part"
    assert line(whole).identified == 9
    assert "Only attacks that know the defence identified any." in said(whole).sentence
    assert "Only attacks that know the defence identified any." in line(whole).sentence


def test_images_that_are_first_and_none_for_sure_forbid_held():
    """Twelve images of 64 are first among 150: no single one is identified, and chance makes no twelve."""
    whole = audit({PLAIN: {}, ADAPTIVE: lined_up(12, 64, 150)})
    assert raised(whole)["true-images-first"].weak
    assert said(whole).verdict == "not shown to leak"
    assert "; 12 were first among 150 candidates, more than by chance (p < 0.001), none of them for sure." in (
        line(whole).sentence
    )


def test_images_of_a_small_class_do_not_hide_the_others():
    ranks = [1.0] * 5 + [300.0] * 27 + [1.0, 2.0] * 16
    fields = lined_up(5, 64, candidates_of_class=[1001] * 32 + [2] * 32) | {"rank": ranks}
    whole = audit({PLAIN: {}, ADAPTIVE: fields})
    assert rank_summaries([row for row in whole.results if row.attack == ADAPTIVE], {})[0].chance == 1
    assert said(whole).verdict == "leaks in part"
    assert "64 images" in said(whole).sentence


def test_what_every_guess_reaches_is_told_apart_by_identification():
    easy = {"ssim": 0.7, "baseline_ssim": 0.69, "guess_ssim": 0.7}
    assert said(audit({PLAIN: easy})).verdict == "not known"
    nobody = audit({PLAIN: easy | lined_up(0, 64)})
    assert said(nobody).verdict == "not known"
    assert line(nobody).sentence.endswith("None was identified among 1,001 candidates (95 % interval 0 to 6 %).")
    assert (line(nobody).identified, line(nobody).identified_of) == (0, 64)
    left_out = audit({PLAIN: easy}, own={"identification_codes": ["identification-left-out"]})
    assert line(left_out).sentence.endswith("Whether one can be identified was not tested.")
    assert said(audit({PLAIN: easy | lined_up(20, 64)})).verdict == "leaks in part"


def test_where_some_are_reconstructed_the_others_are_named():
    fields = lined_up(9, 64, ssim=[0.9] * 3 + [0.2] * 61)
    whole = audit({PLAIN: fields})
    assert said(whole).verdict == "leaks"
    assert "Of them, 6 were not reconstructed." in raised(whole)["images-identified"].sentence
    assert "images are identified that were not reconstructed" in said(whole).sentence
    assert "3 of 64 images were reconstructed (95 % interval 1 to 13 %), against 100 % without the defence; 9 were" in (
        line(whole).sentence
    )
    same = audit({PLAIN: lined_up(3, 64, ssim=[0.9] * 3 + [0.2] * 61)})
    assert "images-identified" not in raised(same)
    plain = audit({PLAIN: lined_up(9, 64), ADAPTIVE: {"ssim": [0.9] * 3 + [0.2] * 61}})
    assert said(plain).verdict == "leaks to an adaptive attacker"
    assert "Inverting Gradients, which ignores the defence, identified 9 of 64 images" in said(plain).sentence


@pytest.mark.parametrize(
    ("code", "clause"),
    [
        ("identification-left-out", "; whether one can be identified was not tested."),
        ("identification-needs-others", "; whether one can be identified is not known, because no other image is."),
        (None, "100 % without the defence. The best"),
    ],
)
def test_the_line_says_where_identification_could_not_be_told(code, clause):
    codes = {"identification_codes": [code]} if code else {}
    assert clause in line(audit({PLAIN: {}, ADAPTIVE: {}}, own=codes)).sentence


def test_without_the_true_images_the_line_says_that_nobody_is_identified():
    blind = {"ssim": None, "psnr": None, "mse": None, "baseline_ssim": None}
    own = {"truth_known": False, "identification_codes": ["identification-needs-truth"]}
    known = line(audit({PLAIN: blind}, own=own, control=False)).sentence
    assert known.endswith("is for eyes to judge. Whose images they are cannot be told either.")
    assert line(audit({PLAIN: blind}, control=False)).sentence.endswith("is for eyes to judge.")


OLD = {
    "federation": "f2",
    "verdict": "held against everything tried",
    "sentence": "PRECODE held against everything tried on LeNet: 0 of 64 images were reconstructed by Inverting "
    "Gradients (95 % interval 0 to 6 %), against 64 of 64 images without the defence. Ignore, which knows the "
    "whole defence, reconstructed none either (95 % interval 0 to 6 %). A stronger attack still might.",
    "cautions": [],
    "lines": [
        {
            "subject": "images",
            "state": "held",
            "sentence": "None of 64 images was reconstructed (95 % interval 0 to 6 %), against 100 % without the "
            "defence. The best guess without an update is as similar on none of them.",
            "seen": 0,
            "cases": 64,
            "interval": [0.0, 0.05600908938663656],
            "guess": 0.0,
            "reason": "A stronger attack still might succeed.",
            "attacks": 2,
        },
        {
            "subject": "guarantees",
            "state": "no guarantee",
            "sentence": "PRECODE promises nothing that bounds what any attack can learn.",
        },
    ],
}
"""What a version without identification said of the same results."""


def test_records_without_identification_keep_their_verdicts():
    assert said(audit({PLAIN: {}, ADAPTIVE: {}})) == VerdictEntry.model_validate(OLD)


def gate(whole, most):
    (answer,) = answers(whole, Demands(max_identified=most))
    return answer.met, answer.reason


def test_the_gate_has_a_limit_of_its_own():
    whole = audit({PLAIN: lined_up(5, 16), ADAPTIVE: lined_up(0, 16)}, 16)
    said_of = answers(whole, Demands(max_asr=0, max_identified=5 / 16, no_flags=True))
    assert [answer.met for answer in said_of] == [True, True, False]
    assert "[images-identified]" in said_of[-1].reason
    assert gate(whole, 0.3) == (
        False,
        "5 of 16 images were identified among 1,001 candidates by some attack (95 % interval 11 to 59 %)",
    )
    assert gate(audit({PLAIN: lined_up(1, 64), ADAPTIVE: lined_up(0, 64)}), 0)[0] is True


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "how many images can be identified is not known: no image was compared with candidates (--candidates)"),
        (lined_up(0, 64, 19), "to be told for sure from others, among 19 candidates are too few"),
        (
            lined_up(0, 64, node=[str(place // 2) for place in range(64)]) | {"rank": [1.0, 300.0] * 32},
            "32 of 64 images are first among 1,001 candidates, more than by chance, and none of them for sure",
        ),
    ],
)
def test_what_cannot_be_told_never_passes_the_gate(fields, reason):
    met, why = gate(audit({PLAIN: fields}), 1)
    assert not met
    assert reason in why


def test_the_gate_refuses_a_limit_that_is_no_share():
    with pytest.raises(ValueError, match="expected --max-identified to be a share from 0 to 1, got 2"):
        Demands(max_identified=2)


def changed(first, second, candidates=(1001, 1001)):
    made = []
    for named, size in zip((first, second), candidates, strict=True):
        whole = audit({PLAIN: lined_up(named, 64, size)}, own={"tape_identity": TAPE})
        victims = [
            VictimImage(
                id=f"f2-u{n}-i0", federation="f2", round=n, node="7", image=0, label=1, label_name=None, truth=None
            )
            for n in range(64)
        ]
        made.append(whole.model_copy(update={"victims": victims}))
    return compare(*made, (Path("/nowhere"), Path("/nowhere")))[0]


@pytest.mark.parametrize(
    ("first", "second", "judgement", "words"),
    [
        (0, 9, "worse", "More images are identified than before."),
        (9, 1, "better", "Fewer images are identified than before."),  # one is chance
        (9, 13, "no difference shown", "No difference is shown."),
    ],
)
def test_the_comparison_pairs_whose_images_are_identified(first, second, judgement, words):
    found = changed(first, second)
    change = next(one for one in found.changes if one.attack == IDENTIFIED)
    assert change.judgement == judgement
    assert change.paired
    assert headline([found]) == words


def test_other_candidates_are_not_compared():
    found = changed(9, 9, (1001, 1200))
    assert IDENTIFIED not in {one.attack for one in found.changes}
    assert "because the candidates differ: 1,001 and 1,200." in found.note
    assert IDENTIFIED not in {
        one.attack for one in compare(*[audit({PLAIN: {}})] * 2, (Path("/a"), Path("/b")))[0].changes
    }


def packed(whole):
    """The record as an audit ends, and what SACRO-ML gets of it."""
    done = finish_record(whole)
    (section,) = [one for one in json.loads(attack_results(done)).values() if isinstance(one, dict)]
    return done, section


def test_the_pack_says_who_is_identified_and_what_to_do():
    done, section = packed(audit({PLAIN: lined_up(5, 16), ADAPTIVE: lined_up(0, 16)}, 16))
    sheet = decision_sheet(done)
    assert sheet.headline.startswith("No image was reconstructed, and 5 of 16 images are identified")
    assert "; 5 were identified among 1,001 candidates" in sheet.lines[0].images
    assert sheet.advice[0].startswith("Treat these updates as leaking, because who has the images can tell")
    assert sheet.advice[0] == advice(done, [one for one in page(done) if not one.control])
    metrics = section["metadata"]["global_metrics"]
    assert (metrics["images_identified"], metrics["candidates"], metrics["images_reconstructed"]) == (5, 1001, 0)
    instances = section["attack_experiment_logger"]["attack_instance_logger"].values()
    (told,) = [one for one in instances if "candidates" in one and one["images_identified"]]
    assert told["AUC"] == pytest.approx(1 - 11 / 16 * 299 / 1000)
    assert told["P_HIGHER_AUC"] < 0.001
    assert (told["fpr"][0], told["fpr"][-1], told["tpr"][0], told["tpr"][-1]) == (0, 1, 0, 1)
    assert trapezoid(told["tpr"], told["fpr"]) == pytest.approx(told["AUC"], abs=0.3)
    assert figures(done)["f2/images_identified"] == 5


def test_a_defence_that_held_counts_for_release_with_what_identifies_nobody():
    _, section = packed(audit({PLAIN: lined_up(0, 64, ssim=0.05), ADAPTIVE: lined_up(1, 64, ssim=0.05)}))
    instances = section["attack_experiment_logger"]["attack_instance_logger"].values()
    assert section["metadata"]["global_metrics"]["verdict"] == "Held against everything tried"
    assert len([one for one in instances if "candidates" in one]) == 2
    assert all(one["P_HIGHER_AUC"] > 0.05 for one in instances)
