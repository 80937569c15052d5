"""The command ``audit``, and what every audit prints at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli.audit_options import AuditOptions, begun, with_audit_options
from attacker.cli.options import Tapes
from attacker.cli.progress import Ticker, campaign_watch
from attacker.cli.reasons import (
    NOTHING_ATTACKED,
    assumption_lines,
    attacked,
    columns,
    not_run_of_record,
    reason_lines,
    wrapped,
)
from attacker.cli.tables import add_attack, attack_table, show_table
from attacker.jobs.allocator import keep_freed_memory
from fl_precode.places.object_store import url_of

if TYPE_CHECKING:
    from rich.table import Table

    from attacker.audit.inputs.tape_source import TapeSource
    from attacker.audit.record.schema import AttackSummary, AuditRecord, FederationSummary
    from attacker.audit.settings import AuditSettings
    from attacker.report.verdict import Verdict


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("audit")(audit)


_Out = Annotated[Path, typer.Option(help="Folder for audit.json, images and the report.")]
_Workers = Annotated[int, typer.Option(min=1, help="Number of worker processes; results do not depend on it.")]
RayAddress = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT", help="Address of an existing Ray cluster to work on; auto finds one.", show_default=False
    ),
]
_Leakage = Annotated[
    bool,
    typer.Option(
        "--leakage/--no-leakage",
        help="Compute how much of an image one update determines, for small models and for as many images as the "
        "budget allows.",
    ),
]
_Candidates = Annotated[
    int,
    typer.Option(
        min=0,
        help="Number of other images that each true image is told from, to say whose image was reconstructed; 0 leaves "
        "this out.",
    ),
]


@with_audit_options
def audit(
    tapes: Tapes,
    out: _Out = Path("audit"),
    *,
    options: AuditOptions,
    workers: _Workers = 1,
    ray_address: RayAddress = "",
    leakage: _Leakage = True,
    candidates: _Candidates = 1_000,
) -> None:
    """Attack the updates on a tape and write the results: audit.json and a report.

    TAPE is the folder that the Interceptor wrote, or its URL in an object
    store, which is copied here first. Images are compared with the true ones
    if the run left an evaluation.json beside the tape, or its clients a
    TAPE.truth (record_truth). The same command resumes an audit that was
    interrupted, killed or out of time. With other settings, the earlier audit
    is moved to a folder of its own.

    Exit code 3: nothing could be attacked; the reason and the remedy are printed.

    Example: fl-precode audit runs/1/tape --out runs/1/audit --victims 64 --workers 2
    """
    start = time.monotonic()
    check_crew(workers, ray_address)
    try:
        with begun(
            tapes, f"Audit of {', '.join(url_of(tape) or str(tape) for tape in tapes)}: reading what was recorded."
        ) as ticker:
            sources = options.sources(tapes)
            settings = options.settings(leakage=leakage, candidates=candidates)
            use_threads(settings.threads)
            record = _audited(sources, settings, out, workers, ray_address, ticker, start)
            ticker.do("writing the page")
            page = write_page(record, out)
    except KeyboardInterrupt:
        if (out / "campaign").is_dir():
            typer.echo(f"What was finished is kept in {out}; the same command goes on from there.", err=True)
        raise
    show(record, out, page)
    if not attacked(record):
        raise typer.Exit(NOTHING_ATTACKED)


def _audited(
    sources: Sequence[TapeSource],
    settings: AuditSettings,
    out: Path,
    workers: int,
    ray_address: str,
    ticker: Ticker,
    began: float,
) -> AuditRecord:
    ticker.do("opening the tape")

    from attacker.audit import audit as run
    from attacker.audit.clock import Clock

    return run.audit(
        sources,
        settings,
        out=out,
        workers=workers,
        ray_address=ray_address,
        watch=campaign_watch(ticker),
        say=lambda sentence: ticker.say("\n".join(wrapped(sentence, columns()))),
        clock=Clock(settings.budget, settings.leakage, began),
    )


def check_crew(workers: int, ray_address: str) -> None:
    """Refuse workers here and on a cluster at once, and what names no cluster.

    Raises:
        typer.BadParameter: If so.
    """
    if not ray_address:
        return
    from attacker.jobs.ray_workers import is_address

    if workers > 1:
        raise typer.BadParameter(
            "either --workers, which work on this machine, or --ray-address, whose cluster works instead",
            param_hint="--workers, --ray-address",
        )
    if not is_address(ray_address):
        raise typer.BadParameter(
            f"expected HOST:PORT of a Ray cluster that is there, or auto for one on this machine, got {ray_address!r}",
            param_hint="--ray-address",
        )


def use_threads(threads: int) -> None:
    """Limit PyTorch's threads in this process, and let it keep the memory that it frees.

    One is the default: beside other busy processes, several threads that wait for each other were measured to be 20 to
    50 times slower than one.
    """
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()


def finish(record: AuditRecord, folder: Path) -> Path:
    """Write the report of a fresh audit into ``folder/report``, print the results and where the report is.

    Returns:
        Absolute path of the page.
    """
    page = write_page(record, folder)
    show(record, folder, page)
    return page


def write_page(record: AuditRecord, folder: Path) -> Path:
    """Write the report into ``folder/report``; its absolute path."""
    from attacker.report.page import write_report

    return write_report(record, folder=folder, out=folder / "report")


def show(record: AuditRecord, folder: Path, page: Path) -> None:
    """Print the results, and where record and report are."""
    show_results(record)
    typer.echo(f"record: {folder.absolute() / 'audit.json'}")
    typer.echo(f"report: {page}")


def show_results(record: AuditRecord) -> None:
    """Print what each attack reconstructed, which attacks gave nothing and why, and the verdict."""
    from attacker import wording
    from attacker.report.verdict import overall, verdicts
    from fl_precode.tape.notes import notes_path

    width = columns()
    for federation in record.federations:
        _show_federation(record, federation)
    missing = not_run_of_record(record)
    if attacked(record) or missing:
        typer.echo(f"attacks: {attacked(record)} run; {len(missing)} not")
    tapes = {summary.tape for summary in record.federations}
    notes = notes_path(Path(tapes.pop())) if len(tapes) == 1 else None
    if missing:
        typer.echo("Why not, the most important reason first:")
        typer.echo("\n".join(reason_lines(missing, notes, width=width)))
    for federation in record.federations:
        if federation.assumptions and not federation.control_of:
            typer.echo("Assumed, because nobody said it:")
            for assumed in federation.assumptions:
                typer.echo("\n".join(assumption_lines(assumed, assumed.updates, notes, width)))
    shown_verdicts = [judgement for judgement in verdicts(record) if not judgement.control]
    typer.echo("\n".join(wrapped(overall(shown_verdicts), width)))
    for verdict in shown_verdicts:
        typer.echo("\n".join(wrapped(verdict.sentence, width)))
        for line in verdict.lines:
            text = f"{wording.capitalised(line.subject)}: {line.state}. {verdict.said(line)}"
            typer.echo("\n".join(wrapped(text, width, indent="  ")))
        for sentence in _beside(record, verdict):
            typer.echo("\n".join(wrapped(sentence, width)))


def _beside(record: AuditRecord, verdict: Verdict) -> list[str]:
    """What else a reader should know at once: features of images that were read, groups that are hit more often."""
    read = [caution for caution in verdict.cautions if caution.startswith("Read from the update")]
    uneven = [flag for flag in record.flags if flag.name == "uneven-disclosure"]
    return [*read, *(flag.sentence for flag in uneven if flag.federation == verdict.federation)]


def _show_federation(record: AuditRecord, federation: FederationSummary) -> None:
    from attacker import wording

    rows = [summary for summary in record.summaries if summary.federation == federation.id and summary.images]
    if not rows:
        return
    control = ", the undefended control" if federation.control_of else ""
    images = wording.counted(rows[0].images, "image")
    title = f"{federation.model}, {wording.defence_text(federation.defence)}{control}: {images} attacked"
    typer.echo("\n".join(wrapped(title, columns())))
    compared = any(row.successes is not None for row in rows)
    show = _similarities if compared else _distances
    show_table(show(record, rows))


def _similarities(record: AuditRecord, rows: Sequence[AttackSummary]) -> Table:
    from attacker import wording
    from attacker.audit.record.view import views

    table = attack_table("reconstructed", "95 %", "SSIM")
    for row in rows:
        back = "not known" if row.successes is None else f"{row.successes} of {row.images}"
        between = wording.interval(*row.interval) if row.interval else "–"
        add_attack(table, row.attack, back, between, wording.figure(row.mean_ssim))
    view = next(candidate for candidate in views(record) if candidate.federation.id == rows[0].federation)
    if (union := view.together) is not None:
        add_attack(table, "any attack", f"{union.back} of {union.images}", wording.interval(*union.interval), "")
    return table


def _distances(record: AuditRecord, rows: Sequence[AttackSummary]) -> Table:
    """Where no true image is known: how near each attack came to the updates."""
    from attacker.audit.record.confirmed import confirms
    from attacker.wording import distance, middle

    table = attack_table("matching loss", "at its start", "confirmed")
    for summary in rows:
        results = [
            row for row in record.results if (row.federation, row.attack) == (summary.federation, summary.attack)
        ]
        loss, start = (middle(getattr(row, name) for row in results) for name in ("matching_loss", "starting_loss"))
        sure = sum(map(confirms, results))
        add_attack(
            table, summary.attack, distance(loss), distance(start), f"{sure} of {summary.images}" if sure else "–"
        )
    return table
