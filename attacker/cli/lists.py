"""The commands that list what can be named: ``models``, ``datasets``, ``attacks``, ``defences``."""

from __future__ import annotations

from collections.abc import Mapping

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (models, datasets, attacks, defences):
        app.command(command.__name__)(command)


def models() -> None:
    """List the models that can be named."""
    from fl_precode.models import MODELS

    entries = {name: entry.description for name, entry in MODELS.items()}
    note = "your own, importable in every process; what it needs is filled in by name (num_classes, in_channels, ...)"
    settings = "the same with settings: literals by keyword, in quotes for the shell"
    _print_entries({**entries, "package.module:factory": note, "package.module:Net(depth=3)": settings})


def datasets() -> None:
    """List the image sets that can be named."""
    from fl_precode.data import DATASETS, OWN_FILES

    own_files = {f"{kind}:PATH": description for kind, (description, _) in OWN_FILES.items()}
    _print_entries({**{name: entry.description for name, entry in DATASETS.items()}, **own_files})


def attacks() -> None:
    """List the attacks that can be named, with their sources."""
    from attacker.attacks.registry import ATTACKS

    _print_entries({name: f"{entry.description} ({entry.source})" for name, entry in ATTACKS.items()})


def defences() -> None:
    """List the defences that can be named."""
    from fl_precode.defences.registry import DEFENCES

    _print_entries({name: entry.description for name, entry in DEFENCES.items()})


def _print_entries(entries: Mapping[str, str]) -> None:
    width = max(map(len, entries))
    for name, description in entries.items():
        typer.echo(f"{name:<{width}}  {description}")
