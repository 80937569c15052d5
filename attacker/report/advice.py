"""Advice after an audit, in sentences for people who decide, from the verdicts and their remedies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from attacker.audit.record.mends import MENDS
from attacker.audit.record.schema import AuditRecord, FederationSummary
from attacker.audit.record.view import lines_that_mend
from attacker.report.verdict import Finding, Verdict
from attacker.wording import defence_name, joined

ORDER: Final = (
    Finding.LEAKS,
    Finding.LEAKS_ADAPTIVE,
    Finding.LEAKS_IN_PART,
    Finding.NOT_SHOWN,
    Finding.NOT_KNOWN,
    Finding.HELD,
)
"""Findings, the one that a reader must act on first in front."""

_MEASURE: Final = "use secure aggregation or differential privacy with a small epsilon, and audit again"
_MORE_TIME: Final = "give the attacks more time (--budget)"

_MENDED_BY: Mapping[str, str] = MappingProxyType(
    {
        "no-adaptive-attack": "attack it with an attack that knows the defence (--attacks)",
        "model-is-random": "attack it with an attack that knows the defence (--attacks)",
        "defence-doubted": "ask which defence the clients really apply",
        "tape-damaged": "record the training once more",
        "loss-assumed": "write the clients' loss into the notes beside the tape",
        "buffers-withheld": "record the running statistics as well",
        "no-control": "let the audit make an undefended control",
        "control-untrained": "audit an undefended tape beside it",
        "labels-unknown": "grant the labels to the attacks (--know labels)",
        "too-few-victims": "attack more images (--victims)",
        "victims-left-out": _MORE_TIME,
        "budget-edge": _MORE_TIME,
        "search-cut": _MORE_TIME,
        "single-start": _MORE_TIME,
        "near-miss": _MORE_TIME,
        "true-images-first": "compare with more images of each class (--candidates, or a larger data set)",
        "attack-left-out": _MORE_TIME,
        "loss-did-not-fall": _MORE_TIME,
        "weaker-beats-stronger": _MORE_TIME,
        "noise-from-a-seed": "train without a seed for the noise",
        "canaries-present": "record a training without canaries",
    }
)
"""Weak flags to what mends them, what a reader can do at once and what weighs most in front."""

_MOST_MENDS: Final = 2


def advice(record: AuditRecord, judged: Sequence[Verdict]) -> str:
    """What to do, in one sentence; it goes by the finding that asks for most.

    Args:
        record: The audit.
        judged: Verdicts of the federations that the page shows, controls left out.
    """
    return steps(record, judged)[0]


def steps(record: AuditRecord, judged: Sequence[Verdict], where: str = "below") -> list[str]:
    """All that is to do, a sentence each, the most urgent first: that of `advice`, then by every other finding.

    Args:
        record: The audit.
        judged: Verdicts of the federations, controls left out.
        where: Where a reader finds what federations are marked with.
    """
    if not judged:
        return ["Record a training and audit it: this record has no federation."]
    groups = [[one for one in judged if one.finding is finding] for finding in ORDER]
    said = [_by_finding(record, these, len(judged), where) for these in groups if these]
    shown = [one for one in judged if one.finding.leak or one.finding is Finding.LEAKS_IN_PART]
    if labels := [one for one in judged if _leaks_labels(one)]:
        said.insert(len(said) if shown else 0, _against_labels(_updates(labels, len(judged), where)))
    if shown or labels:
        said.append("Ask whether updates that were already sent must be deleted, and whether persons must be told.")
    return said


def _by_finding(record: AuditRecord, these: Sequence[Verdict], total: int, where: str) -> str:
    """What to do about the federations of one finding."""
    federations = {federation.id: federation for federation in record.federations}
    concerned = [federations[one.federation] for one in these]
    finding, updates = these[0].finding, _updates(these, total, where, finding=these[0].finding)
    if finding is Finding.LEAKS_IN_PART:
        return _in_part(these, updates)
    if finding.leak:
        return _against_the_leak(finding, updates, concerned)
    some = updates if len(these) < total else ""
    if finding is Finding.NOT_KNOWN:
        return _unknown(record, concerned, f"about {some}" if some else "from this audit")
    if finding is Finding.NOT_SHOWN:
        return _weak(record, concerned, some or "this")
    return (
        "Audit again after each change of the model, the defence or the batch size, and once a year, because new "
        "attacks appear."
    )


def _updates(some: Sequence[Verdict], total: int, where: str, finding: Finding | None = None) -> str:
    if len(some) == total:
        return "these updates"
    which = f"marked “{finding.value}” {where}" if finding is not None else "whose labels leak"
    return f"the updates of the federation{'' if len(some) == 1 else 's'} {which}"


def _leaks_labels(verdict: Verdict) -> bool:
    return any(line.subject == "labels" and line.state == "leaks" for line in verdict.lines)


def _against_labels(updates: str) -> str:
    return f"Keep {updates} from any server that must not learn the labels, which may be diagnoses: {_MEASURE}."


def _in_part(these: Sequence[Verdict], updates: str) -> str:
    if any(line.identified for one in these for line in one.lines):
        return (
            f"Treat {updates} as leaking, because who has the images can tell which ones were trained on, and protect "
            f"them: {_MEASURE}."
        )
    return f"Treat {updates} as leaking, look at the pictures, and protect them: {_MEASURE}."


def _against_the_leak(finding: Finding, updates: str, concerned: Sequence[FederationSummary]) -> str:
    if finding is Finding.LEAKS_ADAPTIVE:
        defences = joined(sorted({defence_name(one.defence).partition(" (")[0] for one in concerned}))
        return f"Do not rely on {defences} alone, which an attacker who knows it gets past: {_MEASURE}."
    return f"Keep {updates} from any server that must not see the images, or protect them: {_MEASURE}."


def _unknown(record: AuditRecord, concerned: Sequence[FederationSummary], about: str) -> str:
    """What would let an audit conclude something: a line for the notes, the true images, or a reader's eyes."""
    ids = {federation.id for federation in concerned}
    pictures = any(row.federation in ids and row.reconstruction is not None for row in record.results)
    planned = [one for one in record.plan if one.federation in ids and one.status != "run"]
    lines = {mend.lacking: mend for one in planned for mend in lines_that_mend(one)}
    if not pictures and lines:
        first = next(mend for mend in MENDS.values() if mend.lacking in lines)
        return f"Write {first.lacking} into the notes beside the tape (the plan below has the line), and audit again."
    if all(federation.truth_known for federation in concerned):
        return f"Conclude nothing {about}: attack other images, which are not so easily guessed."
    if pictures:
        return "Look at the pictures: whoever recognises an image there has found a leak."
    return f"Conclude nothing {about}: read below why no attack gave a result, and audit again."


def _weak(record: AuditRecord, concerned: Sequence[FederationSummary], which: str) -> str:
    ids = {federation.id for federation in concerned}
    raised = {flag.name for flag in record.flags if flag.weak and flag.federation in ids}
    mends = list(dict.fromkeys(mend for name, mend in _MENDED_BY.items() if name in raised))[:_MOST_MENDS]
    what = f"{joined(mends)}, then audit again" if mends else "audit again when new attacks appear"
    return f"Do not report {which} as protected: {what}."
