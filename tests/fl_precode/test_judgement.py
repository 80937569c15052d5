"""What a guard decides from an audit's record: the verdict, and the demand that the gate makes."""

from __future__ import annotations

import pytest

from attacker.audit.verdict.finish import finish_record
from attacker.audit.verdict.verdict import verdicts
from fl_precode.judgement import decided
from tests.attacker.records import ADAPTIVE, FIRST, PLAIN, each, federation, summary, told

ALONE = [federation("f1")]


def judged(whole, **settings):
    return decided(whole.model_copy(update={"verdicts": verdicts(whole)}), **({"max_asr": 0.0} | settings))


def audit(*summaries, **changes):
    return told(ALONE, list(summaries), **changes)


@pytest.mark.parametrize(("max_asr", "passes"), [(0.0, False), (0.24, False), (0.25, True), (1.0, True)])
def test_the_share_that_may_be_reconstructed_is_the_gates(max_asr, passes):
    found = judged(audit(summary("f1", PLAIN, 1), summary("f1", FIRST, 0)), max_asr=max_asr)
    assert found.passes is passes
    assert found.finding == "1 of 4 images was reconstructed, by Inverting Gradients"


def test_all_attacks_that_reconstructed_are_named():
    found = judged(audit(summary("f1", PLAIN, 1), summary("f1", FIRST, 4)))
    assert found.finding == "4 of 4 images were reconstructed, by Inverting Gradients and first-layer inversion"


def test_an_adaptive_attack_counts_as_well():
    whole = told([federation("f1", "precode")], [summary("f1", PLAIN, 0), summary("f1", ADAPTIVE, 2)])
    assert judged(whole).passes is False


def test_an_update_of_which_nothing_is_reconstructed_passes(tmp_path):
    found = judged(audit(summary("f1", PLAIN, 0)), page=tmp_path)
    assert (found.passes, found.finding, found.page) == (
        True,
        "0 of 4 images were reconstructed (not shown to leak)",
        tmp_path,
    )


def test_an_update_that_no_attack_could_be_tried_on_is_not_judged():
    nothing = summary("f1", PLAIN, None, images=0, not_applicable=4, reasons=["the batch size is unknown"])
    whole = audit(nothing, results=each("f1", PLAIN, 4, outcome="not_applicable", ssim=None, baseline_ssim=None))
    for max_asr in (0.0, 1.0):
        found = judged(whole, max_asr=max_asr)
        assert found.passes is None
        assert "no attack gave a result" in found.finding


def test_images_that_a_guess_shows_as_well_are_not_judged():
    rows = each("f1", PLAIN, 4, ssim=0.9, baseline_ssim=0.9)
    found = judged(audit(summary("f1", PLAIN, 0, baseline_successes=4), results=rows))
    assert found.passes is None
    assert "so easily guessed" in found.finding


def test_an_update_that_leaks_in_part_passes_only_where_a_reconstructed_image_would():
    """Nearer to the truth than every guess on all images, and not near enough to count."""
    nearer = each("f1", PLAIN, ssim=0.45, guess_ssim=0.3, guess="class mean")
    whole = audit(summary("f1", PLAIN, 0, images=64), results=nearer)
    assert verdicts(whole)[0].verdict == "leaks in part"
    assert [judged(whole, max_asr=share).passes for share in (0.0, 0.1)] == [False, True]
    assert "leaks in part" in judged(whole).finding


def test_the_record_of_an_audit_has_what_is_needed():
    """As `audit` finishes it."""
    assert decided(finish_record(audit(summary("f1", FIRST, 4))), 0.0).passes is False
