"""Audits while training runs, each in a process of its own: training neither waits for them nor fails with them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
COMMAND = (sys.executable, "-c", "from fl_precode.cli import main; main()", "audit", "--budget", "1m", "--no-leakage")
_NICENESS = 10


class AuditRuns:
    """Starts ``fl-precode audit`` on the newest rounds of a tape, at intervals of rounds, one at a time.

    As a context it waits at its end, some minutes at most, and not at all when training failed.

    Args:
        every: Rounds between two audits; 0 for none.
        tape: Folder of the tape; empty: nobody listens, and there is nothing to audit.
        output_dir: Output folder of the run, where its ``evaluation.json`` is and audits go to; empty: beside the tape.
        command: Program and first arguments.
    """

    def __init__(self, *, every: int, tape: str, output_dir: str = "", command: Sequence[str] = COMMAND) -> None:
        self._every = every if tape else 0
        self._tape = Path(tape)
        self._evaluation = Path(output_dir) / "evaluation.json" if output_dir else None
        self._folder = (Path(output_dir) if output_dir else self._tape.parent) / "audits"
        self._command = tuple(command)
        self._running: tuple[int, subprocess.Popen[bytes]] | None = None
        self._next = 1
        self._missed: int | None = None

    def __enter__(self) -> AuditRuns:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.finish(PATIENCE_SECONDS if kind is None else 0.0)
        if kind is None and self._missed is not None:
            # The last rounds came while another audit was at work; nothing is left that waits for this one.
            self.after_round(self._missed)
            self.finish(PATIENCE_SECONDS)

    def after_round(self, server_round: int) -> None:
        """Start an audit of the rounds since the last one, when it is time and none is at work."""
        if self._every == 0 or server_round == 0 or server_round % self._every:
            return
        try:
            self._start(server_round)
        except Exception as error:  # whatever it is, training goes on
            _log.warning("no audit after round %d: %s: %s", server_round, type(error).__name__, error)

    def finish(self, patience: float) -> None:
        """Wait for the audit at work, so that nothing is left running; one that takes longer is stopped.

        The command in the first line of its log goes on with it.

        Args:
            patience: Seconds.
        """
        if self._running is None:
            return
        number, process = self._running
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            _log.warning(
                "the audit of round %d was stopped after %g s more; its log says what it was", number, patience
            )
            _stop(process)
        self._ended()

    def _start(self, server_round: int) -> None:
        if self._running is not None:
            if self._running[1].poll() is None:
                _log.warning("no audit after round %d: that of round %d is at work", server_round, self._running[0])
                self._missed = server_round
                return
            self._ended()
        out = self._folder / f"round-{server_round:04d}"
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        rounds = ("--rounds", f"{self._next}:{server_round}")
        arguments = (*self._command, str(self._tape), "--out", str(out), *rounds)
        if self._evaluation is not None:
            arguments += ("--evaluation", str(self._evaluation))
        with (out / "audit.log").open("wb") as log:
            os.fchmod(log.fileno(), 0o600)
            log.write(f"{' '.join(arguments)}\n".encode())
            log.flush()
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        psutil.Process(process.pid).nice(_NICENESS)
        self._running = server_round, process
        self._next, self._missed = server_round + 1, None
        _log.info("audit of round %d began; it writes to %s", server_round, out)

    def _ended(self) -> None:
        assert self._running is not None
        number, process = self._running
        self._running = None
        if process.returncode:
            log = self._folder / f"round-{number:04d}" / "audit.log"
            _log.warning("the audit of round %d failed with code %d; see %s", number, process.returncode, log)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End an audit and the workers that it started."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    deadline = time.monotonic() + 10.0
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    for one in [*children, process]:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
