"""Registers the SuperNodes with the SuperLink before they start: ``python -m deploy.register FOLDER_OF_PUBLIC_KEYS``.

Where a database was kept, nodes may be registered already; that is no error.
"""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.connection import CONNECTION, connect, flwr

REGISTERED_ALREADY = "already in use"


def register(folder: Path) -> list[str]:
    """Register every ``*.pub`` in the folder.

    Returns:
        The names of the nodes.

    Raises:
        RuntimeError: If there is no key, or the SuperLink refuses one.
    """
    keys = sorted(folder.glob("*.pub"))
    if not keys:
        raise RuntimeError(f"expected public keys (*.pub) in {folder}, found none")
    for key in keys:
        with flwr("supernode", "register", str(key), CONNECTION, "--name", key.stem) as process:
            output = " ".join(process.communicate()[0].split())
        if process.returncode != 0 and REGISTERED_ALREADY not in output:
            raise RuntimeError(f"the SuperLink does not register {key.stem}: {output[-600:]}")
    return [key.stem for key in keys]


if __name__ == "__main__":
    connect()
    print(f"registered: {', '.join(register(Path(sys.argv[1])))}")  # noqa: T201
