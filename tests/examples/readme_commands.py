"""Runs the shell commands of a README word for word, with processes that are all ended afterwards."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Collection
from pathlib import Path

from deploy.simulation.processes import TOKEN_VARIABLE, end_processes

ROOT = Path(__file__).resolve().parents[2]


def bash_blocks(readme: Path) -> list[str]:
    """The commands of a README, one text for each block."""
    return re.findall(r"```bash\n(.*?)```", readme.read_text(), re.DOTALL)


def follow(readme: Path, home: Path, *, but: Collection[str] = ()) -> str:
    """Run every block in the README's folder, in one shell; returns what was printed.

    Args:
        readme: README of the example.
        home: A folder for what Flower keeps.
        but: Beginnings of blocks that are left out.
    """
    blocks = [block for block in bash_blocks(readme) if not block.startswith(tuple(but))]
    token = uuid.uuid4().hex
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLWR_HOME": str(home),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        TOKEN_VARIABLE: token,
    }
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)], cwd=readme.parent, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, timeout=1500,
        )  # fmt: skip
    finally:
        end_processes(token, home)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout
