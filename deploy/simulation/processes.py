"""Finding and ending every process that a launch started, however many times it was forked."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

TOKEN_VARIABLE = "FL_PRECODE_LAUNCH"
"""Environment variable that marks every process of one launch; children inherit it."""


KILL_ATTEMPTS = 5


def launched_processes(token: str, folder: Path) -> set[psutil.Process]:
    """All living processes of a launch, other than this one.

    Some of Ray's processes rename themselves, which overwrites the environment that others can read; those are known
    by their working folder, or by a parent that is known.

    Args:
        token: Value of the marking variable.
        folder: Folder of the launch; its processes work in it.
    """
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(TOKEN_VARIABLE) == token or Path(process.cwd()).is_relative_to(folder):
                found |= {process, *process.children(recursive=True)}
    return {process for process in found if process.pid != os.getpid()}


def end_processes(token: str, folder: Path, *, grace_seconds: float = 10.0) -> int:
    """Ask every process of a launch to end, wait, then kill what is left.

    Returns:
        How many had to be killed.
    """
    processes = launched_processes(token, folder)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    slow = _still_alive(processes, grace_seconds)
    killed = 0
    # Processes that were started while the others were ending are found only now. What cannot be killed (a process in
    # the kernel, say) must not keep the launcher for ever.
    for _ in range(KILL_ATTEMPTS):
        stubborn = slow | launched_processes(token, folder)
        if not stubborn:
            break
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()
        slow = _still_alive(stubborn, grace_seconds)
        killed += len(stubborn - slow)
    return killed


def _still_alive(processes: set[psutil.Process], seconds: float) -> set[psutil.Process]:
    """Those of the processes that have not ended when the time is over."""
    deadline = time.monotonic() + seconds
    while (alive := {process for process in processes if _alive(process)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _alive(process: psutil.Process) -> bool:
    """Whether it runs; one that only waits for its parent to read its exit code does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
