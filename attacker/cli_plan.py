"""The command ``plan``: what an audit would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from attacker.cli_audit_options import AuditOptions, begun, with_audit_options
from attacker.cli_options import Tapes
from attacker.cli_progress import Ticker, duration
from attacker.cli_reasons import NOTHING_ATTACKED, columns, not_run, reason_lines, wrapped
from attacker.cli_tables import add_attack, attack_table, show_table

if TYPE_CHECKING:
    from attacker.audit.record import PlannedAttack
    from attacker.audit.scope import Federation
    from attacker.audit.settings import AuditSettings
    from attacker.audit.subject import TapeSource


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("plan")(plan)


@with_audit_options
def plan(tapes: Tapes, options: AuditOptions) -> None:
    """Show which attacks `audit` would run on a tape, which not and why, and how long it would take.

    Exit code 3: nothing could be attacked; why, and what mends it, is said.

    Example: fl-precode plan runs/1/tape --victims 64 --budget 30m
    """
    start = time.monotonic()
    with begun(tapes, f"Plan of an audit of {', '.join(map(str, tapes))}.") as ticker:
        sources = options.sources(tapes)
        settings = options.settings(leakage=True)  # as the command audit has it, whose budget they share
        federations, planned = _planned(sources, settings, ticker, start)
    show_plan(federations, planned, settings)
    if not any(one.status == "run" for one in planned):
        raise typer.Exit(NOTHING_ATTACKED)


def _planned(
    sources: Sequence[TapeSource], settings: AuditSettings, ticker: Ticker, began: float
) -> tuple[list[Federation], list[PlannedAttack]]:
    ticker.do("opening the tape, and measuring what an iteration costs")

    from attacker.audit.clock import Clock
    from attacker.audit.run import plan as make_plan

    return make_plan(
        sources,
        settings,
        say=lambda sentence: ticker.say("\n".join(wrapped(sentence, columns()))),
        clock=Clock(settings.budget, settings.leakage, began),
    )


def show_plan(federations: Sequence[Federation], planned: Sequence[PlannedAttack], settings: AuditSettings) -> None:
    """Print the threat model, a table of what would run on each federation, and why the rest would not."""
    from attacker.report.words import counted, defence_text
    from fl_precode.tape_notes import notes_path

    width = columns()
    threat = settings.knowledge.record()
    say = [f"Attacker: {threat.name}; knows {', '.join(threat.granted) or 'nothing more'}; "
           f"does not know {', '.join(threat.withheld)}."]  # fmt: skip
    for own in federations:
        control = ", the undefended control" if own.control_of else ""
        title = f"{own.subject.victim.name}, {defence_text(own.subject.defence)}{control}"
        say += ["", f"{title}: {counted(len(own.targets), 'update')}"]
        say += [f"No undefended control: {own.no_control}."] if own.no_control else []
        typer.echo("\n".join(line for one in say for line in wrapped(one, width)))
        say = []
        _show_what_runs([one for one in planned if one.federation == own.id and one.status == "run"])
        missing = not_run([one for one in planned if one.federation == own.id])
        if not own.control_of:
            runs = sum(one.federation == own.id and one.status == "run" for one in planned)
            typer.echo(f"attacks: {runs} would run; {len(missing)} not")
        if missing:
            typer.echo("Why not, the most important reason first:")
            typer.echo("\n".join(reason_lines(missing, notes_path(own.subject.tape.path.absolute()), width=width)))
    total = sum(one.expected_seconds or 0.0 for one in planned if one.status == "run")
    typer.echo(f"\nExpected: {duration(total)} of one processor.")


def _show_what_runs(planned: Sequence[PlannedAttack]) -> None:
    from fl_precode.spec import spec_name

    if not planned:
        return
    table = attack_table("role", "iterations", "time", last="why")
    for one in planned:
        time = "" if one.expected_seconds is None else duration(one.expected_seconds)
        count = "" if one.iterations is None else str(one.iterations)
        add_attack(table, spec_name(one.attack), one.role, count, time, one.reason)
    show_table(table)
