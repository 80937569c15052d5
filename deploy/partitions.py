"""Gives each client its own images in a volume of its own, once: ``python -m deploy.partitions ROOT``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deploy.run_settings import settings_from_environment
from fl_precode.data import write_partition
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import prepare

FILE = "partition.npz"


def write_partitions(root: Path, settings: Settings) -> list[int]:
    """Write ``ROOT/client-N/partition.npz`` for every client.

    Returns:
        The number of images of each client.

    Raises:
        OSError: If a folder cannot be written.
        ValueError: If the settings do not fit the data.
    """
    federation = prepare(settings)
    for number, indices in enumerate(federation.partitions):
        folder = root / f"client-{number}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_partition(folder / FILE, federation.data, indices)
    return [len(indices) for indices in federation.partitions]


if __name__ == "__main__":
    sizes = write_partitions(Path(sys.argv[1]), settings_from_environment(os.environ))
    print(f"images of the clients: {', '.join(map(str, sizes))}")  # noqa: T201
