"""A hash of the code that runs, so that server and clients notice when theirs differ.

Flower's Ray workers import from the folder in which the SuperLink was started before they look into the submitted
app. Another project's ``clients`` package there would silently train instead of ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

FINGERPRINTED = ("fl_precode", "clients")
"""The packages that a client runs."""

REPLY_RECORD = "fl-precode"
"""Name of the ConfigRecord in a client's reply that carries the fingerprint and, for evaluation only, its partition."""

FINGERPRINT_KEY = "code-fingerprint"
PARTITION_KEY = "partition-id"


def folder_fingerprint(folders: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of every Python file below the folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{file.relative_to(folder).as_posix()}".encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def running_fingerprint() -> str:
    """The fingerprint of the packages as this process imports them.

    Raises:
        RuntimeError: If a package cannot be found.
    """
    folders = []
    for package in FINGERPRINTED:
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"expected the package {package!r} beside this app, found none")
        folders.append(Path(next(iter(spec.submodule_search_locations))))
    return folder_fingerprint(folders)
