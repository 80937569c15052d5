"""The commands ``check`` and ``compare``: what programs and people ask of finished audits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli.errors import error_text

if TYPE_CHECKING:
    from attacker.audit.record.schema import AuditRecord
    from attacker.audit.verdict.ci_gate import Answer
    from attacker.audit.verdict.compare import Comparison

UNUSABLE = 2
_WIDTH = 110


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("check")(check)
    app.command("compare")(compare)


_Record = Annotated[Path, typer.Argument(help="audit.json, or the folder it is in.", show_default=False)]
_MaxAsr = Annotated[
    float | None,
    typer.Option("--max-asr", help="Largest share of images that may be reconstructed.", show_default=False),
]
_MaxIdentified = Annotated[
    float | None,
    typer.Option(
        "--max-identified",
        help="Largest share of images that may be identified among others of their class.",
        show_default=False,
    ),
]
_MinVictims = Annotated[
    int | None, typer.Option("--min-victims", help="Smallest number of attacked images.", show_default=False)
]
_NoFlags = Annotated[
    bool, typer.Option("--no-flags", help="Demand that no flag gives a reason to distrust a low score.")
]
_Allow = Annotated[
    list[str] | None,
    typer.Option("--allow-flag", help="Name of a flag that --no-flags accepts. Repeatable.", show_default=False),
]
_Junit = Annotated[Path | None, typer.Option("--junit", help="File for JUnit XML.", show_default=False)]
_Tape = Annotated[
    Path | None,
    typer.Option("--tape", help="Current place of the tape. Default: its place in the record.", show_default=False),
]


def check(
    record: _Record,
    max_asr: _MaxAsr = None,
    max_identified: _MaxIdentified = None,
    min_victims: _MinVictims = None,
    no_flags: _NoFlags = False,
    allow_flag: _Allow = None,
    junit: _Junit = None,
    tape: _Tape = None,
) -> None:
    """Check an audit against demands, for continuous integration.

    Exit code 0: every demand is met. 1: a demand is not met; the reason is
    printed. 2: the record cannot be used, because it is missing, damaged,
    altered, of another tape or of a newer version.

    Example: fl-precode check audit --max-asr 0 --min-victims 64 --no-flags
    """
    from attacker.audit.verdict.ci_gate import Demands, answers

    try:
        demands = Demands(
            max_asr=max_asr,
            max_identified=max_identified,
            min_victims=min_victims,
            no_flags=no_flags,
            allowed_flags=tuple(allow_flag or ()),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    results = answers(_usable(record, tape), demands)
    _write_junit(results, junit, record)
    for case in results:
        typer.echo(
            _plain(f"{'met    ' if case.met else 'NOT MET'}  {case.demand}  {case.federation}\n         {case.reason}")
        )
    if not all(result.met for result in results):
        raise typer.Exit(1)


def compare(
    first: _Record,
    second: _Record,
    html: Annotated[
        Path | None, typer.Option("--html", help="HTML file for the comparison.", show_default=False)
    ] = None,
) -> None:
    """Compare two audits: what became better or worse, with 95 % intervals.

    If both are of the same images, these are compared one by one (McNemar's exact test).

    Exit code 0: nothing became worse. 1: something did. 2: the records cannot
    be used, or have no federation in common.

    Example: fl-precode compare before/audit.json after/audit.json --html change.html
    """
    from attacker.audit.verdict.compare import compare as compared

    records = (_usable(first, None), _usable(second, None))
    try:
        comparisons = compared(*records, (_folder(first), _folder(second)))
    except ValueError as error:
        raise _unusable(error) from None
    for comparison in comparisons:
        _show(comparison)
    if html is not None:
        from attacker.report.compare_page import write_comparison

        typer.echo(f"written: {write_comparison(comparisons, (str(first), str(second)), html)}")
    if any(change.judgement == "worse" for federation in comparisons for change in federation.changes):
        raise typer.Exit(1)


def _folder(record: Path) -> Path:
    return record if record.is_dir() else record.absolute().parent


def _usable(path: Path, tape: Path | None) -> AuditRecord:
    from attacker.audit.record.json_file import read_record
    from attacker.audit.verdict.integrity import contradictions, tape_contradictions

    try:
        record = read_record(path)
        wrong, unseen = tape_contradictions(record, tape)
        wrong += contradictions(record)
        if wrong:
            raise ValueError(f"{path} was altered, or is of another tape: {'; '.join(wrong)}")
    except (ValueError, OSError) as error:
        raise _unusable(error) from None
    for note in unseen:
        typer.echo(_plain(f"Note: {note}."), err=True)
    return record


def _unusable(error: Exception) -> typer.Exit:
    print(_plain(f"Error: {error_text(error)}"), file=sys.stderr)  # noqa: T201
    return typer.Exit(UNUSABLE)


def _plain(text: str) -> str:
    """Text without what a terminal obeys: names on a tape are anybody's."""
    return "".join(character for character in text if character.isprintable() or character == "\n")


def _write_junit(answers: Sequence[Answer], path: Path | None, record: Path) -> None:
    if path is None:
        return
    from attacker.audit.verdict.ci_gate import junit
    from fl_precode.private_file import write_private

    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, junit(answers, name=f"fl-precode check {record}"))


def _show(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    from attacker import wording

    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    titles = [_plain(title) for title in comparison.titles]
    console.print(titles[0] if titles[0] == titles[1] else f"{titles[0]}  ->  {titles[1]}", markup=False)
    table = Table(header_style="bold")
    for heading in ("attack", "before", "after", "change of the share", "95 %", "SSIM", ""):
        table.add_column(heading, overflow="fold")
    for change in comparison.changes:
        ssim = f"{wording.figure(change.ssim[0])} -> {wording.figure(change.ssim[1])}"
        shares = (f"{back} of {images}" for back, images in (change.first, change.second))
        low, high = (f"{100 * value:+.0f}" for value in change.interval)
        paired = f", p = {change.probability:.2g}" if change.probability is not None else ""
        cells = (
            change.attack,
            *shares,
            f"{100 * change.difference:+.0f} %",
            f"{low} to {high} %{paired}",
            ssim,
            change.judgement,
        )
        table.add_row(*(_plain(cell).replace("[", r"\[") for cell in cells))
    console.print(table)
    for text in _besides(comparison):
        console.print(_plain(text), markup=False, highlight=False)


def _besides(comparison: Comparison) -> list[str]:
    before, after = (entry.verdict for entry in comparison.verdicts)
    lines = [f"Verdict: {before if before == after else f'{before} -> {after}'}"]
    lines += [f"Flags gone: {', '.join(comparison.flags_gone)}"] if comparison.flags_gone else []
    lines += [f"Flags new: {', '.join(comparison.flags_new)}"] if comparison.flags_new else []
    if None not in comparison.accuracy:
        lines.append("Accuracy: " + " -> ".join(f"{100 * (share or 0.0):.1f} %" for share in comparison.accuracy))
    return lines + ([comparison.note] if comparison.note else [])
