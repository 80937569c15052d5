"""The entry point of the command ``fl-precode``: there with the base installation, at work with the extra ``audit``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; where its packages are not installed, say how to install them and end with code 1."""
    try:
        from attacker.cli.main import main as command_line
    except ModuleNotFoundError as error:
        # Packages by the extra that brings them are known there, and it needs none of them.
        from attacker.cli.errors import error_paragraph

        sys.exit(error_paragraph(error))
    command_line()
