"""The command ``plan``: what an audit would do, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from attacker.cli_device import AUTO, Device
from attacker.cli_options import (
    Attacks,
    Budget,
    Classes,
    Defence,
    Evaluation,
    Images,
    Know,
    LabelsOption,
    Mean,
    Model,
    NoControl,
    NoTruth,
    Rounds,
    Seed,
    Std,
    Tapes,
    Threads,
    Truth,
    Victims,
    Withhold,
    audit_settings,
    check_truth,
    find_own_models,
    parse_inputs,
)

if TYPE_CHECKING:
    from attacker.audit.record import PlannedAttack
    from attacker.audit.scope import Federation
    from attacker.audit.settings import AuditSettings


_WIDTH = 120
"""Columns where the output is no terminal."""


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("plan")(plan)


def plan(
    tapes: Tapes,
    attacks: Attacks = None,
    victims: Victims = 4,
    budget: Budget = None,
    seed: Seed = 0,
    labels: LabelsOption = None,
    know: Know = None,
    withhold: Withhold = None,
    no_control: NoControl = False,
    rounds: Rounds = None,
    evaluation: Evaluation = None,
    truth: Truth = None,
    no_truth: NoTruth = False,
    model: Model = None,
    defence: Defence = None,
    images: Images = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
    threads: Threads = 1,
    device: Device = AUTO,
) -> None:
    """Show which attacks `audit` would run on a tape, which not and why, and how long it would take.

    Example: fl-precode plan runs/1/tape --victims 64 --budget 30m
    """
    inputs = parse_inputs(images, classes, mean, std)
    wish = check_truth(no_truth, evaluation, truth)
    settings = audit_settings(
        attacks=attacks, victims=victims, budget=budget, seed=seed, labels=labels, know=know, withhold=withhold,
        control=not no_control, rounds=rounds, threads=threads, device=device,
    )  # fmt: skip
    find_own_models()

    from attacker.audit.run import plan as make_plan
    from attacker.audit.subject import TapeSource

    sources = [
        TapeSource(tape=tape, evaluation=evaluation, truth=wish, model=model, defence=defence, inputs=inputs)
        for tape in tapes
    ]
    federations, planned = make_plan(sources, settings)
    show_plan(federations, planned, settings)


def show_plan(federations: Sequence[Federation], planned: Sequence[PlannedAttack], settings: AuditSettings) -> None:
    """Print the threat model and a table for each federation."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    threat = settings.knowledge.record()
    console.print(f"Attacker: {threat.name}; knows {', '.join(threat.granted) or 'nothing more'}; "
                  f"does not know {', '.join(threat.withheld)}.", markup=False, highlight=False)  # fmt: skip
    for own in federations:
        title = f"{own.subject.victim.name}, {own.subject.defence}, {len(own.targets)} updates"
        console.print()
        console.print(title + (", undefended control" if own.control_of else ""), markup=False, style="bold")
        if own.no_control:
            console.print(f"No undefended control: {own.no_control}.", markup=False, highlight=False)
        table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
        for heading in ("attack", "role", ""):
            table.add_column(heading, overflow="fold")
        table.add_column("iterations", justify="right")
        table.add_column("time", justify="right")
        table.add_column("why", overflow="fold")
        for one in planned:
            if one.federation == own.id:
                time = "" if one.expected_seconds is None else duration(one.expected_seconds)
                count = "" if one.iterations is None else str(one.iterations)
                cells = (one.attack, one.role, one.status.replace("_", " "), count, time, one.reason)
                table.add_row(*(cell.replace("[", r"\[") for cell in cells))
        console.print(table)
    total = sum(one.expected_seconds or 0.0 for one in planned if one.status == "run")
    console.print(f"\nExpected: {duration(total)} of one processor.", markup=False, highlight=False)


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(0.4), duration(75), duration(4000)
    ('0.4 s', '75 s', '67 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
