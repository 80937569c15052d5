"""The commands that list what can be named: ``models``, ``datasets``, ``attacks``, ``defences``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import typer


class Described(Protocol):
    """An entry of any registry."""

    @property
    def description(self) -> str:
        """One line."""


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (models, datasets, attacks, defences):
        app.command(command.__name__)(command)


def models() -> None:
    """List the models that can be named."""
    from fl_precode.models import MODELS

    _print_entries(MODELS)


def datasets() -> None:
    """List the image sets that can be named."""
    from fl_precode.data import DATASETS

    _print_entries(DATASETS)


def attacks() -> None:
    """List the attacks that can be named, with their sources."""
    from attacker.attacks.registry import ATTACKS

    _print_entries(ATTACKS)


def defences() -> None:
    """List the defences that can be named."""
    from fl_precode.defences import DEFENCES

    _print_entries(DEFENCES)


def _print_entries(entries: Mapping[str, Described]) -> None:
    width = max(len(name) for name in entries)
    for name, entry in entries.items():
        typer.echo(f"{name:<{width}}  {entry.description}")
