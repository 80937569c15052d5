"""The page reads verdicts from the record, works them out for older ones, and sums them up in a sentence."""

from __future__ import annotations

import pytest

from attacker.audit.verdict.finish import finish_record
from attacker.report.verdict import Finding, Verdict, overall, verdicts
from tests.attacker.records import PLAIN, federation, record, summary

PAIR = [federation("f1"), federation("f2", "precode")]
SUMMARIES = [summary("f1", PLAIN, 4), summary("f2", PLAIN, 0)]


def said(finding: Finding, *, control: bool = False) -> Verdict:
    return Verdict(federation="f1", finding=finding, sentence="It is so.", control=control)


def test_the_records_own_verdicts_are_shown():
    whole = finish_record(record(PAIR, SUMMARIES))
    changed = [one.model_copy(update={"sentence": "As it was judged then."}) for one in whole.verdicts]
    found = verdicts(whole.model_copy(update={"verdicts": changed}))
    assert [(one.finding, one.sentence) for one in found] == [
        (Finding.LEAKS, "As it was judged then."),
        (Finding.NOT_SHOWN, "As it was judged then."),
    ]


def test_older_records_are_judged_by_the_rules_of_today():
    old = record(PAIR, SUMMARIES)
    assert old.verdicts == []
    assert verdicts(old) == verdicts(finish_record(old))


def test_verdicts_that_miss_a_federation_are_not_believed():
    whole = finish_record(record(PAIR, SUMMARIES))
    assert len(verdicts(whole.model_copy(update={"verdicts": whole.verdicts[:1]}))) == 2


def test_controls_are_marked():
    pair = [federation("f1", control_of="f2"), PAIR[1]]
    assert [one.control for one in verdicts(record(pair, SUMMARIES))] == [True, False]


def test_the_first_sentence_of_the_page():
    leak, adaptive, weak = said(Finding.LEAKS), said(Finding.LEAKS_ADAPTIVE), said(Finding.NOT_SHOWN)
    held, unknown = said(Finding.HELD), said(Finding.NOT_KNOWN)
    assert overall([leak, held, leak, adaptive]) == (
        "Training images were reconstructed from the updates of three of the four federations audited; one held "
        "against everything tried, which is no proof of protection."
    )
    assert overall([said(Finding.LEAKS_IN_PART), weak]) == (
        "Training images were reconstructed from the updates of neither of the two federations audited; one leaks in "
        "part; one is not shown to leak, on weak evidence."
    )
    assert (
        overall([leak, adaptive]) == "Training images were reconstructed from the updates of both federations audited."
    )
    assert overall([weak, unknown]) == (
        "Training images were reconstructed from the updates of neither of the two federations audited; one is not "
        "shown to leak, on weak evidence; about one nothing can be concluded."
    )


@pytest.mark.parametrize(
    ("finding", "sentence"),
    [
        (Finding.LEAKS, "Training images were reconstructed from this federation's updates."),
        (
            Finding.LEAKS_ADAPTIVE,
            "An attacker who knows the defence reconstructs training images from this federation's updates.",
        ),
        (
            Finding.LEAKS_IN_PART,
            "This federation leaks in part: no whole image was reconstructed, but attacks are nearer than any guess.",
        ),
        (Finding.HELD, "The defence held against everything tried, which is no proof of protection."),
        (Finding.NOT_SHOWN, "This federation is not shown to leak, on weak evidence."),
        (Finding.NOT_KNOWN, "Nothing can be concluded about this federation."),
    ],
)
def test_one_federation_and_its_control(finding, sentence):
    assert overall([said(finding)]) == sentence
    assert overall([said(finding), said(Finding.LEAKS, control=True)]) == sentence
