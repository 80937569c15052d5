"""Submits a run to a SuperLink and tells how it really ended.

``flwr run`` answers 0 for runs that failed, and counts a run whose clients all failed as completed. The truth is in
``flwr ls``, a moment after the log has ended.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.simulation.superlink import LaunchError
from fl_precode.federation.config import Value
from fl_precode.private_file import write_private

STATUS_SECONDS = 60.0

FlowerCommand = Callable[..., "subprocess.Popen[str]"]
"""Starts ``flwr`` with the given arguments against one SuperLink, its output in a pipe."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How a run really ended.

    Attributes:
        completed: Whether every round was finished.
        status: Flower's own word (``finished:completed``), for records.
        reason: One readable line; empty when completed.
        run_id: Flower's run id.
        seconds: Wall time from submission to the end.
        log: The whole log of server and clients.
    """

    completed: bool
    status: str
    reason: str
    run_id: str
    seconds: float
    log: str

    def keep_log(self, folder: Path) -> Path:
        """Keep the log beside the run's results. It names nodes and errors, so only the owner may read it.

        Returns:
            Where it is.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = folder / "federation.log"
        write_private(place, self.log.encode())
        return place


class Submission:
    """Runs apps on one SuperLink.

    Args:
        flwr: Flower's command line.
        connection: Name of the SuperLink in its configuration.
        status_seconds: How long the status may lag behind the end of the log: a SuperLink that was restarted
            notices only by missing heartbeats that a run has died.
    """

    def __init__(self, flwr: FlowerCommand, connection: str, *, status_seconds: float = STATUS_SECONDS) -> None:
        self._flwr = flwr
        self._connection = connection
        self._status_seconds = status_seconds

    def run(
        self, app: Path, config: Path, *, federation: str = "", on_line: Callable[[str], None] | None = None
    ) -> RunOutcome:
        """Submit one run and wait for its end.

        Args:
            app: Folder of the Flower App.
            config: TOML file with the run configuration.
            federation: Flower's federation configuration, for simulations.
            on_line: Called with every line of the run's log as it comes.

        Raises:
            LaunchError: If Flower does not accept the run, or cannot be asked about it.
        """
        started = time.monotonic()
        extra = ("--federation-config", federation) if federation else ()
        answer = self.answer("run", str(app), self._connection, "--format", "json", "--run-config", str(config), *extra)
        run_id = str(answer.get("run-id", ""))
        if not answer.get("success") or not run_id:
            raise LaunchError(f"Flower did not accept the run: {answer.get('error-message', answer)}")
        log = self._follow(run_id, on_line)
        status, details = self._final_status(run_id)
        completed = status == "finished:completed"
        return RunOutcome(
            completed=completed,
            status=status,
            reason="" if completed else failure_reason(log, details or status),
            run_id=run_id,
            seconds=time.monotonic() - started,
            log=log,
        )

    def answer(self, *arguments: str) -> dict[str, object]:
        """What a ``flwr`` command with ``--format json`` answers.

        Raises:
            LaunchError: If it answers something else.
        """
        with self._flwr(*arguments) as process:
            output = process.communicate()[0]
        start = output.find("{")
        try:
            answer = json.loads(output[start:]) if start >= 0 else None
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise LaunchError(f"`flwr {arguments[0]}` failed: {' '.join(output.split())[-600:]}")
        return answer

    def _follow(self, run_id: str, on_line: Callable[[str], None] | None) -> str:
        lines = []
        with self._flwr("log", run_id, self._connection, "--stream") as following:
            assert following.stdout is not None
            for line in following.stdout:
                lines.append(line)
                if on_line is not None:
                    on_line(line.rstrip("\n"))
        return "".join(lines)

    def _final_status(self, run_id: str) -> tuple[str, str]:
        status, details = "unknown", ""
        deadline = time.monotonic() + self._status_seconds
        # The log ends a little before the status is final.
        while not status.startswith("finished:") and time.monotonic() < deadline:
            runs = self.answer("ls", self._connection, "--run-id", run_id, "--format", "json").get("runs")
            if isinstance(runs, list) and runs:
                status, details = str(runs[0]["status"]), str(runs[0].get("status-details") or "")
        return status, details


def to_toml(run_config: Mapping[str, Value]) -> str:
    """The run configuration as a TOML file. JSON's strings, numbers and booleans are valid TOML."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in run_config.items())


def failure_reason(log: str, otherwise: str) -> str:
    """The last exception line in a run's log, with the list below it, or ``otherwise`` when there is none."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    line = r"^(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Replies)\b: .*(?:\n  - .*)*)$"
    raised = re.findall(line, plain, re.MULTILINE)
    return " ".join(str(raised[-1] if raised else otherwise).split())
