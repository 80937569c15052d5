"""The end of an audit: what its results are worth, and the files for readers and programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attacker.audit.record.csv_file import write_results
from attacker.audit.record.groups import group_disclosures
from attacker.audit.record.json_file import write_record
from attacker.audit.record.schema import AuditRecord, LeakageSummary
from attacker.audit.verdict.bounds import bounds
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import verdicts


def finish_record(record: AuditRecord, leakage: Sequence[LeakageSummary] = ()) -> AuditRecord:
    """The record with its flags and verdicts, by the rules of docs/reference/flags.md.

    Args:
        record: With everything that was planned, measured and attacked.
        leakage: Leakage indices, one for each federation at most; none leaves those of the record.
    """
    whole = record.model_copy(update={"leakage": list(leakage)}) if leakage else record
    whole = whole.model_copy(update={"bounds": bounds(whole), "group_disclosures": group_disclosures(whole)})
    raised = flags(whole)
    return whole.model_copy(update={"flags": raised, "verdicts": verdicts(whole, raised)})


def write_audit(record: AuditRecord, folder: Path) -> Path:
    """Write ``audit.json`` and ``results.csv`` into the folder; the path of the first.

    Raises:
        OSError: If the folder cannot be written.
    """
    write_results(record, folder)
    return write_record(record, folder)
