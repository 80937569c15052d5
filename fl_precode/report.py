"""Records of audits, what they say, and their pages. `write_report` needs the extra ``report``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attacker.audit.record.json_file import read_record, write_record
from attacker.report.verdict import overall, verdicts

if TYPE_CHECKING:
    from attacker.report.page import write_report

__all__ = ["overall", "read_record", "verdicts", "write_record", "write_report"]


def __getattr__(name: str) -> Any:
    """Import the page on first use: records are read without templates and plots."""
    if name != "write_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    from attacker.report.page import write_report

    return write_report
