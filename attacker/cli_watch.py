"""The command ``watch``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("watch")(watch)


def watch(
    tape: Annotated[Path, typer.Argument(help="Folder of the tape, now or later.", show_default=False)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = 0,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            help="Cheap attacks, tried in turn until one fits. Repeatable. Default: first-layer, then a short "
            "inverting-gradients.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the attacks.")] = 0,
) -> None:
    """Show on a local page what a curious server sees, while the federation runs.

    TAPE may not exist yet. It is only read, by one thread of the lowest priority.
    The page opens on this machine only, and with the address printed here only.

    Example: fl-precode watch runs/1/tape
    """
    from attacker.attacks.registry import build_attack
    from attacker.watch.follow import CHEAP
    from attacker.watch.server import serve

    wanted = tuple(attacks or CHEAP)
    try:
        for spec in wanted:
            build_attack(spec)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--attacks") from None
    with suppress(KeyboardInterrupt):
        serve(tape, port=port, attacks=wanted, seed=seed, ready=lambda address: typer.echo(f"watch: {address}"))
