"""Finds Docker and Compose on this machine and says what is missing. Standard library only: it runs before installs."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OLDEST_ENGINE = (20, 10)
OLDEST_COMPOSE = (1, 29)
NEEDED_GB = 6.0
"""Image, its layers while it is built, and the volumes."""


class NotPossible(RuntimeError):
    """The containers cannot be built or started; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Compose:
    """A Compose command that works, and the engine behind it.

    Attributes:
        command: ``docker compose`` or ``docker-compose``.
        version: Version of Compose.
        engine: Version of the daemon.
    """

    command: tuple[str, ...]
    version: tuple[int, ...]
    engine: tuple[int, ...]


def find_compose() -> Compose:
    """Docker Compose, and a daemon that answers.

    Raises:
        NotPossible: If one is missing, unreachable or too old.
    """
    if shutil.which("docker") is None:
        raise NotPossible(
            "Docker is not installed. On Debian or Ubuntu: apt-get install docker.io docker-compose; elsewhere see "
            "docs.docker.com/engine/install"
        )
    asked = _run(["docker", "version", "--format", "{{.Server.Version}}"])
    if asked.returncode != 0:
        raise NotPossible(
            f"the Docker daemon does not answer ({_last_line(asked)}). Start it (systemctl start docker), "
            "or name another with DOCKER_HOST; its user must be in the group docker"
        )
    engine = version_of(asked.stdout)
    if engine < OLDEST_ENGINE:
        raise NotPossible(f"the Docker daemon is version {dotted(engine)}; expected {dotted(OLDEST_ENGINE)} or newer")
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) is None:
            continue
        asked = _run([*command, "version", "--short"])
        if asked.returncode == 0 and version_of(asked.stdout) >= OLDEST_COMPOSE:
            return Compose(command=command, version=version_of(asked.stdout), engine=engine)
    raise NotPossible(
        f"Docker Compose {dotted(OLDEST_COMPOSE)} or newer is not installed. On Debian or Ubuntu: apt-get install "
        "docker-compose; elsewhere see docs.docker.com/compose/install"
    )


def check_port(port: int) -> None:
    """Refuse a port that another program listens on.

    Raises:
        NotPossible: If it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise NotPossible(
                f"port {port} on 127.0.0.1 is taken by another program; choose another: make compose-demo "
                f"REPORT_PORT={port + 1}"
            ) from error


def check_disk(folder: Path, *, needed_gb: float = NEEDED_GB) -> None:
    """Refuse a disk that is nearly full, before a build fails half-way through. A folder that is not here passes.

    Raises:
        NotPossible: If less than ``needed_gb`` GB (1e9 bytes) are free.
    """
    if not folder.is_dir():  # the daemon is on another machine
        return
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed_gb:
        raise NotPossible(
            f"{folder} has {free:.1f} GB free; the images need {needed_gb:g} GB. Make room (docker system df shows "
            "what Docker holds)"
        )


def docker_root() -> Path:
    """Where the daemon keeps images and volumes."""
    return Path(_run(["docker", "info", "--format", "{{.DockerRootDir}}"]).stdout.strip() or "/var/lib/docker")


def version_of(text: str) -> tuple[int, ...]:
    """The numbers of a version.

    >>> version_of("v2.26.1-4"), version_of("20.10.24+dfsg1"), version_of("none")
    ((2, 26, 1), (20, 10, 24), ())
    """
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def dotted(version: Sequence[int]) -> str:
    """A version as text."""
    return ".".join(map(str, version))


def run_compose(
    compose: Compose,
    project: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> int:
    """Run a Compose command in the foreground and return its exit code; 124 when the time is over."""
    command = [*compose.command, "-p", project, *arguments]
    # Compose 1.29 gives up on the daemon after 60 s, which removing an image can take on a busy disk.
    patient = {"COMPOSE_HTTP_TIMEOUT": "600", **os.environ, **(environment or {})}
    try:
        return subprocess.run(command, env=patient, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return 124


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", "no answer within 60 s")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"
