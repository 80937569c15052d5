"""Records of audits, what they say, their pages and packs. `write_report` and `save_pack` need the extra ``report``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from attacker.audit.record.json_file import read_record, write_record
from attacker.report.verdict import overall, verdicts

if TYPE_CHECKING:
    from attacker.report.pack.evidence import save_pack
    from attacker.report.page import write_report

__all__ = ["overall", "read_record", "save_pack", "verdicts", "write_record", "write_report"]

_PLACES: Final = {"save_pack": "attacker.report.pack.evidence", "write_report": "attacker.report.page"}


def __getattr__(name: str) -> Any:
    """Import pages and packs on first use: records are read without templates and plots."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PLACES[name]), name)
