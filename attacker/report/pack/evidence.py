"""Writes the evidence pack: a folder or a ZIP file, readable by its owner only, whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from attacker.audit.record.json_file import RECORD_NAME, read_record
from attacker.audit.record.schema import AuditRecord
from attacker.audit.verdict.integrity import contradictions
from attacker.report.pack.crate import CRATE_NAME, crate
from attacker.report.pack.decision import decision_sheet
from attacker.report.pack.pdf import NoPdfTool, pdf
from attacker.report.pack.requirements import as_csv, as_json, cross_table
from attacker.report.pack.sacro import RESULTS_NAME, TARGET_NAME, attack_results, target_yaml
from attacker.report.page import render
from attacker.report.pictures import Album
from fl_precode.private_file import make_private_folder, write_private

PAGE_NAME: Final = "evidence.html"
PDF_NAME: Final = "evidence.pdf"

DESCRIPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        PDF_NAME: "The decision sheet on two pages, then the annex.",
        PAGE_NAME: "The same as one web page that loads nothing.",
        "audit.json": "The record of the audit, as fl-precode audit wrote it.",
        RESULTS_NAME: "Every attack, as the output checkers of SACRO-ML read it.",
        TARGET_NAME: "The model, as the output checkers of SACRO-ML read it.",
        "requirements.csv": "What supervisors and standards ask, and what was tested for it.",
        "requirements.json": "The same table as JSON.",
    }
)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a ZIP: the same audit gives the same bytes."""


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The files of a pack.

    Attributes:
        files: Content by name.
        missing: What is not in it, and what to do about that; one sentence each.
    """

    files: Mapping[str, bytes]
    missing: tuple[str, ...]


def evidence_page(record: AuditRecord, folder: Path, *, redact: bool = False) -> str:
    """The page of a pack as HTML text: the decision sheet, then the annex.

    Args:
        record: The audit.
        folder: Where the pictures are found from.
        redact: Put in no picture at all; every number stays.
    """
    return render(
        "pack.html.j2",
        record,
        Album(folder, empty=redact),
        style="pack.css.j2",
        sheet=decision_sheet(record),
        table=cross_table(record),
    )


def make_pack(record: AuditRecord, *, source: bytes, page: str) -> Pack:
    """Make the files of a pack.

    Args:
        record: The audit.
        source: Content of its ``audit.json``, which goes into the pack as it is.
        page: Result of `evidence_page`.

    Returns:
        The files. Where there is no PDF tool, the PDF is not among them and `Pack.missing` says so.

    Raises:
        ValueError: If the record's time is none.
    """
    table = cross_table(record)
    files = {
        "audit.json": source,
        PAGE_NAME: page.encode(),
        RESULTS_NAME: attack_results(record).encode(),
        TARGET_NAME: target_yaml(record).encode(),
        "requirements.csv": as_csv(table).encode(),
        "requirements.json": as_json(table).encode(),
    }
    missing = []
    try:
        files[PDF_NAME] = pdf(page)
    except NoPdfTool as error:
        missing.append(str(error))
    files[CRATE_NAME] = crate(record, files, DESCRIPTIONS).encode()
    return Pack(files=files, missing=tuple(missing))


def save_pack(audit: Path, place: Path, *, redact: bool = False) -> Pack:
    """Write the evidence pack of an audit: a ZIP file where the name ends in ``.zip``, else a new folder.

    Args:
        audit: Its ``audit.json``, or the folder that it is in, where the pictures are.
        place: Place of the pack.
        redact: Put in no picture at all; every number stays.

    Returns:
        Its files, and in `Pack.missing` what is not in it and why.

    Raises:
        ValueError: If the record is missing its time, damaged, altered or of a newer version, or the place holds
            something.
        OSError: If the record cannot be read, or the pack cannot be written.
    """
    refuse_what_is_there(place)
    record, source = unaltered(audit)
    folder = audit if audit.is_dir() else audit.absolute().parent
    pack = make_pack(record, source=source, page=evidence_page(record, folder, redact=redact))
    write_pack(pack, place)
    return pack


def unaltered(path: Path) -> tuple[AuditRecord, bytes]:
    """A record whose figures follow from its results, and the content of its file.

    Raises:
        ValueError: If it is damaged, altered or of a newer version.
        OSError: If it cannot be read.
    """
    record = read_record(path)
    source = (path / RECORD_NAME if path.is_dir() else path).read_bytes()
    if wrong := contradictions(record):
        raise ValueError(f"{path} was altered, so no evidence is made of it: {'; '.join(wrong)}")
    return record, source


def write_pack(pack: Pack, place: Path) -> Path:
    """Write a pack: a ZIP file where the name ends in ``.zip``, else a folder.

    Returns:
        Its absolute path.

    Raises:
        ValueError: If a folder is there that holds something, or a file in place of a folder.
        OSError: If it cannot be written.
    """
    place = place.expanduser().absolute()
    if place.suffix.lower() == ".zip":
        place.parent.mkdir(parents=True, exist_ok=True)
        write_private(place, _zipped(pack.files))
        return place
    refuse_what_is_there(place)
    made = make_private_folder(place.with_name(f".{place.name}.{os.getpid()}.part"))
    try:
        for name, content in pack.files.items():
            write_private(made / name, content)
        os.replace(made, place)
    except OSError:
        with contextlib.suppress(OSError):
            shutil.rmtree(made)
        raise
    return place


def refuse_what_is_there(place: Path) -> None:
    """Refuse a folder that holds something: sharp pictures of another pack could stay beside a redacted one.

    Raises:
        ValueError: If something is there.
    """
    place = place.expanduser().absolute()
    if place.suffix.lower() == ".zip":
        if place.is_dir():
            raise ValueError(f"{place} is a folder; --pack needs the name of a ZIP file or of a new folder")
        return
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ValueError(
            f"{place} holds something already. A pack is written as a whole: name a new folder or a ZIP file for "
            "--pack, or remove this one"
        )


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, so that the mode counts
            entry.external_attr = 0o100600 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()
