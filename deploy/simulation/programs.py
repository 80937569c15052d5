"""Flower's command-line programs, started with this Python and the flwr that it imports.

The scripts that pip installs may be absent (flwr installed for another environment that this one sees), not on
``PATH``, or those of another flwr; and Flower starts its own processes by their bare names.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from pathlib import Path

# The first lines are one for a shell, which knows no limit to the length of a path and no trouble with spaces, and a
# string that nobody reads for Python.
_PROGRAM = """\
#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys
from {module} import {function}
sys.exit({function}())
"""


def write_programs(folder: Path) -> Path:
    """Write a program for each that flwr installs.

    Args:
        folder: A new folder; to be the first on ``PATH``.

    Raises:
        FileNotFoundError: If flwr is not installed for this Python.
    """
    programs = _declared()
    folder.mkdir()
    for one in programs:
        program = folder / one.name
        program.write_text(_PROGRAM.format(python=sys.executable, module=one.module, function=one.attr))
        program.chmod(0o700)
    return folder


def _declared() -> list[EntryPoint]:
    try:
        declared = distribution("flwr").entry_points
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"expected the package flwr to be installed for {sys.executable}, found none; "
            "pip install 'fl-precode[simulation]'"
        ) from None
    return [one for one in declared if one.group == "console_scripts"]
