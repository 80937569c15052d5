"""The decision sheet: two pages for a privacy officer, in plain words, made from the record alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from attacker.attacks.registry import attack_title
from attacker.audit.record.schema import AuditRecord
from attacker.audit.verdict.verdict import title_of
from attacker.report.advice import ORDER, steps
from attacker.report.pack.answers import (
    NEVER,
    Audited,
    audited,
    guarantee_result,
    label_result,
    not_run,
    received,
    reconstructed,
)
from attacker.report.verdict import Finding, Verdict
from attacker.wording import capitalised, count, counted, duration, joined, knowledge

MOST: Final = 4
"""Federations that fit on the first page; the annex has all of them."""

_LONGEST: Final = 230
_CELL: Final = 180
_TITLE: Final = 90
"""Characters of a list in a sentence, of a cell and of a federation's title: the sheet keeps to its two pages."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One federation on the sheet.

    Attributes:
        title: Model, defence and images.
        finding: The verdict.
        images: What was reconstructed, and what was identified.
        labels: What was read of the labels.
        guarantee: What is promised.
    """

    title: str
    finding: Finding
    images: str
    labels: str
    guarantee: str


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The decision sheet.

    Attributes:
        headline: The finding in a sentence.
        lines: The federations that need a decision most, at most `MOST`.
        more: Federations that only the annex has.
        rests_on: What the verdict rests on, in sentences.
        advice: What to do, in sentences, the most urgent first.
        not_tested: What was not tested.
    """

    headline: str
    lines: tuple[Line, ...]
    more: int
    rests_on: tuple[str, ...]
    advice: tuple[str, ...]
    not_tested: tuple[str, ...]


def decision_sheet(record: AuditRecord) -> Sheet:
    """The sheet of an audit."""
    ones = sorted(audited(record), key=lambda one: ORDER.index(one.verdict.finding))
    return Sheet(
        headline=_headline([one.verdict for one in ones]),
        lines=tuple(_line(one) for one in ones[:MOST]),
        more=max(0, len(ones) - MOST),
        rests_on=tuple(_rests_on(record, ones)),
        advice=tuple(_advice(record, ones)),
        not_tested=tuple(_not_tested(record, ones)),
    )


_HEADLINES: Final = {
    Finding.LEAKS: "An attacker reconstructs training images from these updates.",
    Finding.LEAKS_ADAPTIVE: "An attacker who knows the defence reconstructs training images from these updates.",
    Finding.LEAKS_IN_PART: "These updates give away parts of training images.",
    Finding.NOT_SHOWN: "No attack reconstructed an image, and the evidence is weak.",
    Finding.NOT_KNOWN: "This audit allows no conclusion.",
    Finding.HELD: "The defence held against every attack that was tried. That is no proof.",
}


def _headline(judged: list[Verdict]) -> str:
    findings = [one.finding for one in judged]
    if len(judged) == 1 and findings != [Finding.NOT_KNOWN] and judged[0].headline:
        return judged[0].headline
    if len(set(findings)) == 1:
        return _HEADLINES[findings[0]]
    leaks = sum(finding.leak for finding in findings)
    if not findings or not leaks:
        return "No attack reconstructed a whole image. That is no proof of protection."
    return f"An attacker reconstructs training images from the updates of {leaks} of {len(findings)} federations."


def _line(one: Audited) -> Line:
    verdict = one.verdict
    return Line(
        title=_short(title_of(one.federation), _TITLE),
        finding=verdict.finding,
        images=_short(verdict.number("images") or reconstructed(one), _CELL),
        labels=_short(verdict.number("labels") or label_result(one)[1], _CELL),
        guarantee=_short(verdict.number("guarantees") or guarantee_result(one)[1], _CELL),
    )


def _short(text: str, longest: int = _LONGEST) -> str:
    """The text, cut between words where it would not fit.

    >>> _short("word " * 100)[-6:], _short("x" * 500, 3)
    ('word …', 'xxx …')
    """
    if len(text) <= longest:
        return text
    return f"{text[:longest].rpartition(' ')[0] or text[:longest]} …"


def _rests_on(record: AuditRecord, ones: list[Audited]) -> list[str]:
    updates = sum(one.view.attacked[0] for one in ones)
    images = sum(len({row.victim_id for row in one.view.all_rows}) for one in ones)
    attacks = len({row.attack for one in ones for row in one.view.tried})
    seconds = sum(row.seconds for row in record.summaries)
    said = [
        f"{counted(attacks, 'attack')} worked on {counted(images, 'image')}"
        + (f" from {counted(updates, 'client update')}" if updates else "")
        + f" and used {duration(seconds)} of computing time.",
        _attacker(record),
        "An image counts as reconstructed only where the attack comes nearer to it than the best guess without the "
        "update, such as the average image.",
    ]
    if any(line.identified_of for one in ones for line in one.verdict.lines):
        said.append(
            "An image counts as identified where the true image is the nearest of all candidates to the "
            "reconstruction, and chance does not explain it."
        )
    if any(not one.federation.truth_known for one in ones):
        said.append(
            "The true images are not known everywhere. There a person has to look at the pictures in the annex."
        )
    defended = [one for one in ones if one.view.defended]
    if defended:
        without = sum(one.view.control is not None for one in defended)
        said.append(
            f"Of {counted(len(defended), 'defended federation')}, {count(without)} {'has' if without == 1 else 'have'} "
            "an undefended control: the same updates without the defence, to see whether the attacks work at all."
        )
    weak = {flag.name for flag in record.flags if flag.weak}
    if weak:
        said.append(
            f"{counted(len(weak), 'flag')} of this audit {'gives a reason' if len(weak) == 1 else 'give reasons'} to "
            f"distrust a low score: {_short(joined(sorted(weak)))}."
        )
    return said


def _attacker(record: AuditRecord) -> str:
    threat = record.threat_model
    begins = (
        "The attacker is a curious server: it follows the training as agreed and reads the updates that it receives."
    )
    if threat is None:
        return begins
    known = joined([knowledge(kind) for kind in threat.granted]) or "nothing more"
    return f"{begins} It also knows: {_short(known)}."


def _advice(record: AuditRecord, ones: list[Audited]) -> list[str]:
    return [
        *map(_short, steps(record, [one.verdict for one in ones], where="above")),
        "Keep this pack with the data protection impact assessment. Treat it like the images that it shows.",
    ]


def _not_tested(record: AuditRecord, ones: list[Audited]) -> list[str]:
    left = [capitalised(what) for what in NEVER]
    skipped = {text for one in ones if (text := not_run(one))}
    if skipped:
        planned = sum(row.status != "run" for row in record.plan)
        left.append(f"{counted(planned, 'planned attack')} that did not run; the annex says why (section Plan)")
    others = sum(max(0, received(one) - one.view.attacked[0]) for one in ones)
    if others:
        left.append(f"{counted(others, 'other update')} of these federations, and all later rounds")
    failed = sorted({attack_title(row.attack) for one in ones for row in one.view.summaries if row.failed})
    if failed:
        left.append(f"What these attacks would have found where they failed: {_short(joined(failed))}")
    return left
