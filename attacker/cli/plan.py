"""The command ``plan``: what an audit would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from attacker.cli.audit_options import AuditOptions, begun, with_audit_options
from attacker.cli.options import Tapes
from attacker.cli.progress import Ticker, duration
from attacker.cli.reasons import NOTHING_ATTACKED, columns, not_run, reason_lines, wrapped
from attacker.cli.tables import add_attack, attack_table, show_table
from fl_precode.places.object_store import url_of

if TYPE_CHECKING:
    from attacker.audit.federations.federation import AuditedFederation
    from attacker.audit.inputs.tape_source import TapeSource
    from attacker.audit.record.schema import PlannedAttack
    from attacker.audit.settings import AuditSettings


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("plan")(plan)


@with_audit_options
def plan(tapes: Tapes, options: AuditOptions) -> None:
    """Show which attacks `audit` would run on a tape, which not and why, and how long it would take.

    Exit code 3: nothing could be attacked; the reason and the remedy are printed.

    Example: fl-precode plan runs/1/tape --victims 64 --budget 30m
    """
    start = time.monotonic()
    with begun(tapes, f"Plan of an audit of {', '.join(url_of(tape) or str(tape) for tape in tapes)}.") as ticker:
        sources = options.sources(tapes)
        settings = options.settings(leakage=True)  # as the command audit has it, whose budget they share
        federations, planned = _planned(sources, settings, ticker, start)
    show_plan(federations, planned, settings)
    if not any(attack.status == "run" for attack in planned):
        raise typer.Exit(NOTHING_ATTACKED)


def _planned(
    sources: Sequence[TapeSource], settings: AuditSettings, ticker: Ticker, began: float
) -> tuple[list[AuditedFederation], list[PlannedAttack]]:
    ticker.do("opening the tape, and measuring what an iteration costs")

    from attacker.audit.audit import plan as make_plan
    from attacker.audit.clock import Clock

    return make_plan(
        sources,
        settings,
        say=lambda sentence: ticker.say("\n".join(wrapped(sentence, columns()))),
        clock=Clock(settings.budget, settings.leakage, began),
    )


def show_plan(
    federations: Sequence[AuditedFederation], planned: Sequence[PlannedAttack], settings: AuditSettings
) -> None:
    """Print the threat model, a table of what would run on each federation, and why the rest would not."""
    from attacker.wording import counted, defence_text
    from fl_precode.tape.notes import notes_path

    width = columns()
    threat = settings.knowledge.record()
    say = [f"Attacker: {threat.name}; knows {', '.join(threat.granted) or 'nothing more'}; "
           f"does not know {', '.join(threat.withheld)}."]  # fmt: skip
    for federation in federations:
        control = ", the undefended control" if federation.control_of else ""
        title = f"{federation.subject.victim.name}, {defence_text(federation.subject.defence)}{control}"
        say += ["", f"{title}: {counted(len(federation.targets), 'update')}"]
        say += [f"No undefended control: {federation.no_control}."] if federation.no_control else []
        typer.echo("\n".join(line for text in say for line in wrapped(text, width)))
        say = []
        _show_what_runs([attack for attack in planned if attack.federation == federation.id and attack.status == "run"])
        missing = not_run([attack for attack in planned if attack.federation == federation.id])
        if not federation.control_of:
            runs = sum(attack.federation == federation.id and attack.status == "run" for attack in planned)
            typer.echo(f"attacks: {runs} would run; {len(missing)} not")
        if missing:
            typer.echo("Why not, the most important reason first:")
            typer.echo(
                "\n".join(reason_lines(missing, notes_path(federation.subject.tape.path.absolute()), width=width))
            )
    total = sum(attack.expected_seconds or 0.0 for attack in planned if attack.status == "run")
    typer.echo(f"\nExpected: {duration(total)} of one processor.")


def _show_what_runs(planned: Sequence[PlannedAttack]) -> None:
    from fl_precode.spec import spec_name

    if not planned:
        return
    table = attack_table("role", "iterations", "time", last="why")
    for entry in planned:
        time = "" if entry.expected_seconds is None else duration(entry.expected_seconds)
        count = "" if entry.iterations is None else str(entry.iterations)
        add_attack(table, spec_name(entry.attack), entry.role, count, time, entry.reason)
    show_table(table)
