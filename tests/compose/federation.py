"""The federation of docker-compose.yml as the tests drive it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.compose.engine import Engine, sh

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "fl-precode-test"
PORT = 18099
RUN_SECONDS = 900.0


@dataclass
class Federation:
    """One Compose project.

    Attributes:
        engine: Where it runs.
        environment: What is set for every Compose command.
    """

    engine: Engine
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {
            **self.engine.build,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_HTTP_TIMEOUT": "600",
            "REPORT_PORT": str(PORT),
            "VICTIMS": "2",
            **self.environment,
        }

    def demo(self, what: str) -> subprocess.CompletedProcess[str]:
        """``make compose-demo`` or ``make compose-down``, whose recipes are this command."""
        return subprocess.run(
            [sys.executable, "-m", "deploy.demo", what], cwd=ROOT, env={**os.environ, **self.environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=2400,
        )  # fmt: skip

    def command(self, *arguments: str) -> list[str]:
        return [*self.engine.compose.command, "-p", PROJECT, *arguments]

    def compose(self, *arguments: str, check: bool = True, seconds: float = 600, **extra: str) -> str:
        os.chdir(ROOT)
        return sh(*self.command(*arguments), check=check, seconds=seconds, **{**self.environment, **extra})

    def container(self, service: str) -> str:
        """Id of a service's container, running or not."""
        listed = sh(
            "docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}",
            "--filter", f"label=com.docker.compose.service={service}",
            "--filter", "label=com.docker.compose.oneoff=False",
        )  # fmt: skip
        return listed.split()[0]

    def inspect(self, service: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(sh("docker", "inspect", self.container(service)))[0]
        return found

    def services(self) -> list[str]:
        return self.compose("config", "--services").split()

    def one_off(self, service: str, command: Sequence[str] = (), *, seconds: float = 300, **extra: str) -> Finished:
        """Run a service's container once more, by itself, with another command."""
        started = self.start(service, command, **extra)
        return started.wait(seconds)

    def start(self, service: str, command: Sequence[str] = (), **extra: str) -> Running:
        full = self.command("run", "--rm", "--no-deps", "-T", service, *command)
        return Running(
            subprocess.Popen(
                full,
                cwd=ROOT,
                env={**os.environ, **self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )  # fmt: skip
        )

    def wait_for_round(self, running: Running, run: str, *, finished: int, seconds: float = RUN_SECONDS) -> None:
        """Wait until a run has finished so many rounds; its log arrives too late for that."""
        deadline = time.monotonic() + seconds
        command = ["docker", "exec", self.container("serverapp"), "cat", f"/results/{run}/result.json"]
        while True:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0 and len(json.loads(done.stdout)["rounds"]) > finished:
                return
            assert running.process.poll() is None, f"ended before round {finished}:\n{running.output[-3000:]}"
            assert time.monotonic() < deadline, f"no round {finished} within {seconds:g} s"
            time.sleep(0.2)

    def record(self, run: str) -> dict[str, Any]:
        """``audit.json`` of a run."""
        text = self.one_off("attacker", ["cat", f"/audit/{run}/audit.json"]).output
        found: dict[str, Any] = json.loads(text[text.index("{") :])
        return found


@dataclass(frozen=True)
class Finished:
    """A command that has ended: its exit code (124: it was ended) and its output."""

    code: int
    output: str


class Running:
    """A command whose output is read while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", "".join(self.lines))

    def wait(self, seconds: float = RUN_SECONDS) -> Finished:
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(timeout=60)
            code = 124
        self._reader.join(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return Finished(code, self.output)
