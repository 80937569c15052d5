"""A Docker engine for the tests: the one that runs, or one of our own; and a base image where none can be pulled."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.compose import Compose, NotPossible, find_compose
from tests.compose.base_image import make_base_image, torch_wheels

CACHE = Path(os.environ.get("FL_PRECODE_COMPOSE_CACHE", "/var/tmp/fl-precode-compose"))
"""Keeps the base image's archive between runs; everything else below it goes at the end."""

BASE_IMAGE = "python:3.11-slim-bookworm"
PACKAGES = ("docker.io", "docker-compose", "debootstrap", "iptables", "cgroupfs-mount", "ca-certificates")
PULL_SECONDS = 120


@dataclass
class Engine:
    """A working engine.

    Attributes:
        compose: The Compose command.
        build: Environment for building: a local base image has what cannot be fetched here.
        seconds: How long each step took, by name.
    """

    compose: Compose
    build: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)


def sh(*command: str | Path, seconds: float = 600, check: bool = True, **extra: str) -> str:
    """Run a command; its output, both streams. A failure shows what it said."""
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        env={**os.environ, **extra},
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


@contextmanager
def running_engine() -> Iterator[Engine]:
    """The engine that answers, or Debian's, installed when absent, with a daemon of our own that is ended again.

    Raises:
        NotPossible: If there is none and none can be had (no root, no Debian).
    """
    seconds: dict[str, float] = {}
    daemon: subprocess.Popen[bytes] | None = None
    # Debian's client before any newer one: Compose 1.29 calls whichever is first, and needs one that fits the daemon.
    os.environ["PATH"] = f"/usr/sbin:/usr/bin:/sbin:/bin:{os.environ['PATH']}"
    try:
        try:
            compose = find_compose()
        except NotPossible:
            with timed(seconds, "packages"):
                _install()
            with timed(seconds, "dockerd"):
                daemon = _start_daemon()
            compose = find_compose()
        engine = Engine(compose=compose, seconds=seconds)
        _provide_base_image(engine)
        yield engine
    finally:
        if daemon is not None:
            _stop_daemon(daemon)


def _install() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NotPossible("no Docker engine answers, and installing Debian's needs root and apt-get")
    installed = sh("dpkg-query", "-W", "-f", "${Package} ${Status}\n", check=False)
    missing = [name for name in PACKAGES if f"{name} install ok installed" not in installed]
    if missing:
        sh("apt-get", "update", "-qq")
        sh(
            "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, DEBIAN_FRONTEND="noninteractive"
        )  # fmt: skip


def _start_daemon() -> subprocess.Popen[bytes]:
    if not os.path.ismount("/sys/fs/cgroup"):
        sh("cgroupfs-mount")
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "docker.pid").unlink(missing_ok=True)
    address = f"unix://{CACHE}/docker.sock"
    with (CACHE / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(
            ["dockerd", "--data-root", CACHE / "data", "--exec-root", CACHE / "exec", "-H", address,
             "--pidfile", CACHE / "docker.pid"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    os.environ["DOCKER_HOST"] = address
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and daemon.poll() is None:
        if subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
            return daemon
        time.sleep(0.5)
    _stop_daemon(daemon)
    raise NotPossible(f"dockerd did not come up: {(CACHE / 'dockerd.log').read_text(errors='replace')[-800:]}")


def _stop_daemon(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=60)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    os.environ.pop("DOCKER_HOST", None)
    for name in ("data", "exec"):
        shutil.rmtree(CACHE / name, ignore_errors=True)


def _provide_base_image(engine: Engine) -> None:
    """Pull the base image; where no registry is reached, make a stand-in that knows this machine's certificates."""
    marker = sh("docker", "image", "inspect", "-f", "{{.Comment}}", BASE_IMAGE, check=False)
    if "Error" in marker:
        with timed(engine.seconds, "pull the base image"):
            pulled = _pulled()
        if pulled:
            return
        with timed(engine.seconds, "make the base image"):
            archive = make_base_image(CACHE)
            settings: Sequence[str] = (
                "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8",
                'CMD ["python3"]',
            )
            changes = [part for setting in settings for part in ("-c", setting)]
            sh("docker", "import", "-m", "local stand-in", *changes, archive, BASE_IMAGE)
    elif "stand-in" not in marker and "Imported" not in marker:
        return
    engine.build = {"PIP_EXTRA_INDEX_URL": ""}
    if not torch_wheels():
        engine.build["TORCH"] = "torch==2.13.0"


def _pulled() -> bool:
    try:
        done = subprocess.run(["docker", "pull", "-q", BASE_IMAGE], capture_output=True, timeout=PULL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
