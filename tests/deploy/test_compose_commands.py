"""What stands in the way of containers is said before anything is built."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.compose import Compose, NotPossible, check_disk, check_port, find_compose, run_compose

ROOT = Path(__file__).resolve().parents[2]


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("programs", "says"),
    [
        ({}, "Docker is not installed.*apt-get install docker.io"),
        (
            {"docker": "echo 'Cannot connect to the Docker daemon' >&2; exit 1"},
            "does not answer.*Cannot connect.*DOCKER_HOST",
        ),
        ({"docker": 'echo "19.03.8"'}, "version 19.3.8; expected 20.10 or newer"),
        ({"docker": '[ "$1" = version ] && echo 24.0.1'}, "Docker Compose 1.29 or newer is not installed"),
        (
            {"docker": '[ "$1" = version ] && echo 24.0.1', "docker-compose": "echo 1.25.0"},
            "Docker Compose 1.29 or newer is not installed",
        ),
    ],
    ids=["absent", "unreachable", "too old", "without compose", "compose too old"],
)
def test_what_is_missing_is_said(tmp_path, monkeypatch, programs, says):
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        program(tmp_path / "bin", name, text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(NotPossible, match=f"(?s){says}"):
        find_compose()


@pytest.mark.parametrize(
    ("programs", "command", "version"),
    [
        ({"docker": '[ "$1" = compose ] && echo v2.26.1-4 || echo 24.0.1'}, ("docker", "compose"), (2, 26, 1)),
        (
            {"docker": '[ "$1" = version ] && echo 20.10.24', "docker-compose": "echo 1.29.2"},
            ("docker-compose",),
            (1, 29, 2),
        ),
    ],
)
def test_either_compose_is_found(tmp_path, monkeypatch, programs, command, version):
    for name, text in programs.items():
        program(tmp_path / "bin", name, text)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = find_compose()
    assert (found.command, found.version) == (command, version)


def test_a_taken_port_is_refused():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(NotPossible, match=f"port {port} .* is taken.*REPORT_PORT={port + 1}"):
            check_port(port)
    check_port(port)


def test_a_full_disk_is_refused(tmp_path):
    with pytest.raises(NotPossible, match="GB free; the images need 1e"):
        check_disk(tmp_path, needed_gb=1e9)
    check_disk(tmp_path, needed_gb=0.001)
    check_disk(tmp_path / "elsewhere", needed_gb=1e9)


def test_the_command_ends_with_one_line_and_a_code(tmp_path):
    """As `make compose-demo` runs it: by the system's Python, without anything installed."""
    (tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "bin")}
    command = [sys.executable, "-S", "-m", "deploy.demo"]
    refused = subprocess.run([*command, "up"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: Docker is not installed")
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 1
    program(tmp_path / "bin", "docker", '[ "$1" = compose ] && echo v2.26.1 || echo 24.0.1')
    usage = subprocess.run([*command, "sideways"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert usage.returncode == 2
    assert "up|down" in usage.stderr


@pytest.mark.parametrize(("own", "seconds"), [(None, 600), ("90", 90)])
def test_compose_is_patient_with_a_busy_daemon_unless_told_otherwise(monkeypatch, own, seconds):
    monkeypatch.delenv("COMPOSE_HTTP_TIMEOUT", raising=False)
    if own is not None:
        monkeypatch.setenv("COMPOSE_HTTP_TIMEOUT", own)
    program = f"import os, sys; sys.exit(os.environ['COMPOSE_HTTP_TIMEOUT'] != '{seconds}')"
    compose = Compose(command=(sys.executable, "-c", program), version=(1, 29, 2), engine=(20, 10))
    assert run_compose(compose, "p", ["down"]) == 0
