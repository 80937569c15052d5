"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
        bool, typer.Option("--redact", help="Blur true images and reconstructions; the numbers stay.")
    ] = False,
) -> None:
    """Write the report of an audit again, from its audit.json and pictures.

    RECORD is the audit.json, or the folder that it is in.
    """
    from attacker.audit.record.json_file import read_record
    from attacker.report.page import write_report

    folder = record if record.is_dir() else record.absolute().parent
    place = out or folder / ("report-redacted" if redact else "report")
    page = write_report(read_record(record), folder=folder, out=place, redact=redact)
    typer.echo(f"report: {page}")
