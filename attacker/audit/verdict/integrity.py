"""Integrity of a record: its agreement with its own results, and with the tape that it names."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from attacker.audit.record.schema import AttackSummary, AuditRecord, FederationSummary
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD, summarise
from attacker.audit.verdict.bounds import bounds
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import verdicts
from fl_precode.tape import Tape, TapeError


def contradictions(record: AuditRecord) -> list[str]:
    """What in a record does not follow from its results, one sentence each; empty for one that nobody altered.

    Somebody who alters the results and everything that follows from them is not found out: nothing is signed.
    """
    known = {federation.id for federation in record.federations}
    named = {result.federation for result in record.results} | {summary.federation for summary in record.summaries}
    strange = sorted(named - known)
    problems = [f"results name the federation {name!r}, which is not in it" for name in strange]
    ours = record.versions.get("fl-precode") == _version()
    counted_alike = ours or all(row.guess_ssim is not None or row.baseline_ssim is None for row in record.results)
    if record.success_threshold == SUCCESS_THRESHOLD and record.results and counted_alike:
        problems += [
            f"the summary of {summary.attack} on {summary.federation} does not follow from its results"
            for summary in record.summaries
            if summary.federation in known and not _follows(summary, record, ours=ours)
        ]
    if record.verdicts and ours:  # the rules of another version may differ
        if record.bounds != bounds(record):
            problems.append("its bounds do not follow from its results")
        raised = flags(record)
        if record.flags != raised:
            problems.append("its flags do not follow from its results")
        if record.verdicts != verdicts(record, raised):
            problems.append("its verdicts do not follow from its results")
    return problems


def _follows(summary: AttackSummary, record: AuditRecord, *, ours: bool) -> bool:
    """Whether a summary is what its results give; other versions reckon the interval in another way."""
    again = summarise(summary.federation, summary.attack, record.results, record.victims)
    return summary == (again if ours else again.model_copy(update={"interval": summary.interval}))


def tape_contradictions(record: AuditRecord, tape: Path | None = None) -> tuple[list[str], list[str]]:
    """Whether the record is of the tapes that it names.

    Args:
        record: The audit.
        tape: Where the tape is now, for the audit of a single one; None looks where it was.

    Returns:
        What contradicts it, and which tapes could not be looked at, one sentence each.
    """
    wrong: list[str] = []
    unseen: list[str] = []
    for federation in record.federations:
        if federation.control_of is not None:
            continue
        path = tape if tape is not None else Path(federation.tape)
        if federation.tape_identity is None:
            unseen.append(f"{federation.id}: the record does not say which tape it is of; an older fl-precode wrote it")
        elif tape is None and not path.is_dir():
            unseen.append(f"{federation.id}: its tape is not at {path}; give --tape to have it compared")
        else:
            wrong += [f"{federation.id}: {problem}" for problem in _of_another_tape(record, federation, path)]
    return wrong, unseen


def _of_another_tape(record: AuditRecord, federation: FederationSummary, path: Path) -> list[str]:
    assert federation.tape_identity is not None
    try:
        tape = Tape(path)
        sha256, length = tape.fingerprint(federation.tape_identity.manifest_bytes)
    except TapeError as error:
        return [f"its tape cannot be read: {error}"]
    if (sha256, length) != (federation.tape_identity.sha256, federation.tape_identity.manifest_bytes):
        return [f"the tape at {path} is not the one that was audited, or was altered since"]
    listed = {(entry.round, entry.node) for entry in tape.entries}
    named = {(row.round, row.node) for row in record.victims if row.federation == federation.id}
    return [f"round {number}, client {node} is not on the tape" for number, node in sorted(named - listed)]


def _version() -> str | None:
    try:
        return metadata.version("fl-precode")
    except metadata.PackageNotFoundError:
        return None
