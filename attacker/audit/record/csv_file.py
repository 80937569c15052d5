"""``results.csv`` and ``labels.csv``: what an audit found as tables, for pandas, R and spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attacker.audit.record.counting import comparable, counts
from attacker.audit.record.labels import LabelReading
from attacker.audit.record.schema import AuditRecord, ImageResult
from fl_precode.private_file import write_private

RESULTS_NAME: Final = "results.csv"
LABELS_NAME: Final = "labels.csv"

_WHICH: Final = ("victim_id", "federation", "attack", "model", "defence", "dataset", "round", "node", "image")

COLUMNS: Final = (
    *_WHICH,
    *(name for name in ImageResult.model_fields if name not in _WHICH),
    *("label", "label_name", "reconstructed", "control_of", "groups"),
)
"""The fields of `ImageResult`, then the true class, whether SSIM reached the threshold, what it is a control of, and
the image's groups in columns of the data set, as JSON."""

LABEL_COLUMNS: Final = ("federation", *LabelReading.model_fields, "exact")
"""The federation, the fields of `LabelReading`, then whether all labels of the update were read right."""

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet take text for a formula (OWASP, CSV injection)."""


def results_text(record: AuditRecord) -> str:
    """The table: a line of names, then one line for each result. Unknown is empty, yes and no are 1 and 0.

    Text that a spreadsheet would run as a formula has an apostrophe before it; numbers have not.
    """
    victims = {victim.id: victim for victim in record.victims}
    controls = {federation.id: federation.control_of for federation in record.federations}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in record.results:
        victim = victims.get(row.victim_id)
        more = {
            "label": None if victim is None else victim.label,
            "label_name": None if victim is None else victim.label_name,
            "groups": json.dumps(victim.groups, ensure_ascii=False) if victim is not None and victim.groups else None,
            "reconstructed": int(counts(row, record.success_threshold)) if comparable(row) else None,
            "control_of": controls.get(row.federation),
        }
        writer.writerow(_cells({**row.model_dump(), **more}))
    return text.getvalue()


def labels_text(record: AuditRecord) -> str:
    """The table of labels: a line of names, then one line for each update whose labels were read, as `results_text`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, LABEL_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for found in record.label_disclosures:
        for reading in found.updates:
            exact = None if reading.right is None else int(reading.exact)
            counts = " ".join(map(str, reading.counts))
            more = {"federation": found.federation, "counts": counts, "exact": exact}
            writer.writerow(_cells({**reading.model_dump(), **more}))
    return text.getvalue()


def write_results(record: AuditRecord, folder: Path) -> Path:
    """Write the tables beside ``audit.json``, readable by their owner only; the path of the first.

    That of labels is left out where the record has none, and one of an earlier audit is taken away.

    Raises:
        OSError: If it cannot be written.
    """
    path = folder / RESULTS_NAME
    write_private(path, results_text(record).encode())
    if record.label_disclosures:
        write_private(folder / LABELS_NAME, labels_text(record).encode())
    else:
        (folder / LABELS_NAME).unlink(missing_ok=True)
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
