"""Flower's command line against the federation's SuperLink, over TLS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONNECTION = "federation"


def write_connection(home: Path, *, address: str, certificate: Path) -> None:
    """Tell ``flwr`` where the SuperLink is and whom to trust: ``HOME/config.toml``."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "{address}"\nroot-certificates = "{certificate}"\n'
    )


def flwr(*arguments: str) -> subprocess.Popen[str]:
    """Start Flower's command line, its output in a pipe; it reads ``FLWR_HOME`` from the environment."""
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("flwr")), *arguments], env=dict(os.environ),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip


def connect() -> None:
    """Write the configuration from the container's environment (FLWR_HOME, SUPERLINK, CA_CERTIFICATE)."""
    write_connection(
        Path(os.environ["FLWR_HOME"]),
        address=os.environ["SUPERLINK"],
        certificate=Path(os.environ["CA_CERTIFICATE"]),
    )
