"""The command ``report``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli.errors import error_text

if TYPE_CHECKING:
    from attacker.audit.record.schema import AuditRecord

INCOMPLETE, UNUSABLE = 1, 2


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("report")(report)


def report(
    record: Annotated[Path, typer.Argument(help="audit.json, or the folder it is in.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for index.html. Default: `report` beside the record, `report-redacted` with --redact.",
            show_default=False,
        ),
    ] = None,
    redact: Annotated[
        bool,
        typer.Option("--redact", help="Blur true images and reconstructions, or leave them out of a pack."),
    ] = False,
    pack: Annotated[
        Path | None,
        typer.Option("--pack", help="New folder, or ZIP file, for an evidence pack.", show_default=False),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option("--mlflow", metavar="URI", help="MLflow server to send figures and page to.", show_default=False),
    ] = None,
) -> None:
    """Write the report of an audit again, from its audit.json and pictures.

    RECORD is the audit.json, or the folder that it is in.

    With --pack, the command writes an evidence pack instead. The pack holds a
    decision sheet and its annex as PDF, the record, the files that SACRO-ML
    reads, an RO-Crate, and a table of requirements of supervisors and
    standards.

    Exit code 1: the pack was written without its PDF, or the MLflow server
    refused the run; the reason is printed. 2: a pack cannot be made of the
    record: it is missing, damaged, altered or of a newer version.

    Example: fl-precode report audit --pack evidence.zip
    """
    if pack is None and mlflow is None:
        _page(record, out, redact=redact)
        return
    missing = _pack(record, pack, redact=redact, mlflow=mlflow)
    if out is not None:
        _page(record, out, redact=redact)
    for sentence in missing:
        print(f"Note: {sentence}.", file=sys.stderr)  # noqa: T201
    if missing:
        raise typer.Exit(INCOMPLETE)


def _folder(record: Path) -> Path:
    return record if record.is_dir() else record.absolute().parent


def _page(record: Path, out: Path | None, *, redact: bool) -> None:
    from attacker.audit.record.json_file import read_record
    from attacker.report.page import write_report

    folder = _folder(record)
    place = out or folder / ("report-redacted" if redact else "report")
    page = write_report(read_record(record), folder=folder, out=place, redact=redact)
    typer.echo(f"report: {page}")


def _pack(path: Path, place: Path | None, *, redact: bool, mlflow: str | None) -> list[str]:
    """Write the pack and log the run, as far as they were asked for; what is missing, in sentences."""
    from attacker.report.pack.evidence import PAGE_NAME, evidence_page, make_pack, refuse_what_is_there, write_pack
    from attacker.report.pack.tracking import NotLogged, log_run

    if place is not None:
        refuse_what_is_there(place)
    record, source = _usable(path)
    page = evidence_page(record, _folder(path), redact=redact)
    missing: list[str] = []
    if place is not None:
        pack = make_pack(record, source=source, page=page)
        typer.echo(f"evidence pack: {write_pack(pack, place)}")
        missing += pack.missing
    if mlflow is not None:
        try:
            typer.echo(f"MLflow run: {log_run(record, page, PAGE_NAME, mlflow)}")
        except NotLogged as error:
            missing.append(str(error))
    return missing


def _usable(path: Path) -> tuple[AuditRecord, bytes]:
    """A record whose figures follow from its results, and the content of its file; else exit code 2."""
    from attacker.report.pack.evidence import unaltered

    try:
        return unaltered(path)
    except (ValueError, OSError) as error:
        print(f"Error: {error_text(error)}", file=sys.stderr)  # noqa: T201
        raise typer.Exit(UNUSABLE) from None
