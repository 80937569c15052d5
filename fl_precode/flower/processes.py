"""Finding and ending every process that a launch started, however many times it was forked."""

from __future__ import annotations

import contextlib
import os

import psutil

TOKEN_VARIABLE = "FL_PRECODE_LAUNCH"
"""Environment variable that marks every process of one launch; children inherit it."""


def marked_processes(token: str) -> list[psutil.Process]:
    """All living processes, other than this one, whose environment carries the token."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(TOKEN_VARIABLE) == token:
                found.append(process)
    return found


def end_processes(token: str, *, grace_seconds: float = 10.0) -> int:
    """Ask every marked process to end, wait, then kill what is left.

    Returns:
        How many had to be killed.
    """
    processes = marked_processes(token)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(processes, timeout=grace_seconds)
    # Processes started while the others were ending are found only now.
    stubborn = marked_processes(token)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=grace_seconds)
    return len(stubborn)
