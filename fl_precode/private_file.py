"""Files and folders that hold updates or say whose they are: readable by their owner only, and never half-written."""

from __future__ import annotations

import os
from pathlib import Path


def make_private_folder(folder: Path) -> Path:
    """Create the folder, 0700, with its parents, and return its absolute path. An existing folder keeps its mode.

    Raises:
        OSError: If it cannot be made, or a file stands in its place.
    """
    folder = folder.expanduser().absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_private(path: Path, content: bytes) -> None:
    """Write a file with mode 0600 under a temporary name, flush it to the disk, then give it its name.

    A reader therefore sees the old file, the new one or none, whatever happens in between.

    Raises:
        OSError: If the folder is missing or not writable, or the disk is full; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)  # a full disk names none
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
