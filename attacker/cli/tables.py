"""Tables of attacks that fit the terminal; no name is broken in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacker.cli.reasons import columns

if TYPE_CHECKING:
    from rich.table import Table

_NAME = 23
"""Columns of the longest name of an attack, and some."""


def attack_table(*headings: str, last: str = "") -> Table:
    """A table whose first column is the attack; numbers stand right, and a last column of words takes the rest."""
    from rich.table import Table

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("attack", min_width=_NAME)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    if last:
        table.add_column(last)
    return table


def add_attack(table: Table, spec: str, *cells: str) -> None:
    """A row: the attack's name with its settings beneath, and the cells."""
    from rich.text import Text

    from fl_precode.spec import parse_spec

    parsed = parse_spec(spec)
    first = Text(parsed.name)
    for number, (key, value) in enumerate(parsed.options.items(), start=1):
        first.append(f"\n  {key}={value}" + ("," if number < len(parsed.options) else ""), style="dim")
    table.add_row(first, *(Text(cell) for cell in cells))


def show_table(table: Table) -> None:
    """Print the table as wide as the terminal."""
    from rich.console import Console

    Console(width=columns()).print(table)
