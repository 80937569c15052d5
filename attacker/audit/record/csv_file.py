"""``results.csv``: every result of an audit as a table, for pandas, R and spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attacker.audit.record.counting import comparable, counts
from attacker.audit.record.schema import AuditRecord, ImageResult
from fl_precode.private_file import write_private

RESULTS_NAME: Final = "results.csv"

_WHICH: Final = ("victim_id", "federation", "attack", "model", "defence", "dataset", "round", "node", "image")

COLUMNS: Final = (
    *_WHICH,
    *(name for name in ImageResult.model_fields if name not in _WHICH),
    *("label", "label_name", "came_back", "control_of"),
)
"""The fields of `ImageResult`, then the true class, whether SSIM reached the threshold, what it is a control of."""

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet take text for a formula (OWASP, CSV injection)."""


def results_text(record: AuditRecord) -> str:
    """The table: a line of names, then one line for each result. Unknown is empty, yes and no are 1 and 0.

    Text that a spreadsheet would run as a formula has an apostrophe before it; numbers have not.
    """
    labels = {victim.id: (victim.label, victim.label_name) for victim in record.victims}
    controls = {federation.id: federation.control_of for federation in record.federations}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in record.results:
        label, label_name = labels.get(row.victim_id, (None, None))
        more = {
            "label": label,
            "label_name": label_name,
            "came_back": int(counts(row, record.success_threshold)) if comparable(row) else None,
            "control_of": controls.get(row.federation),
        }
        writer.writerow(_cells({**row.model_dump(), **more}))
    return text.getvalue()


def write_results(record: AuditRecord, folder: Path) -> Path:
    """Write the table beside ``audit.json``, readable by its owner only; its path.

    Raises:
        OSError: If it cannot be written.
    """
    path = folder / RESULTS_NAME
    write_private(path, results_text(record).encode())
    return path


def _cells(row: Mapping[str, object]) -> dict[str, object]:
    texts = {name: " ".join(value) if isinstance(value, list) else value for name, value in row.items()}
    return {name: harmless(value) if isinstance(value, str) else value for name, value in texts.items()}


def harmless(text: str) -> str:
    """Text that no spreadsheet runs, without characters that end a file early.

    >>> harmless("=cmd|' /C calc'!A0"), harmless("node 7")
    ("'=cmd|' /C calc'!A0", 'node 7')
    """
    clean = text.replace("\0", "").replace("\r", "\n")  # a bare return, unquoted, ends a line for some readers
    return f"'{clean}" if clean.lstrip(" ").startswith(_FORMULAS) else clean
