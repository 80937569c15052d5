"""The command line ``fl-precode``."""

from __future__ import annotations


def main() -> None:
    """Run the command that the arguments name."""
    from attacker.cli import main as run

    run()
