"""A launcher that is killed leaves nothing behind: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from deploy.simulation.guard import Guard
from deploy.simulation.processes import TOKEN_VARIABLE, end_processes, launched_processes

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def gone(token: str, folder: Path, seconds: float) -> bool:
    """Whether a launch's processes and its folder are gone, now or soon."""
    deadline = time.monotonic() + seconds
    while launched_processes(token, folder) or folder.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def launcher(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A process that says a line when it is ready, and then waits to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nprint(flush=True)\ntime.sleep(600)", *arguments],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_what_a_killed_launcher_started_is_ended_and_its_folder_removed(tmp_path):
    token, folder = uuid.uuid4().hex, tmp_path / "launch"
    folder.mkdir()
    code = (
        "import os, subprocess, sys, time; from pathlib import Path; from deploy.simulation.guard import Guard\n"
        "token, folder = sys.argv[1:]; guard = Guard(token, Path(folder))\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        f"subprocess.Popen(sleep, env={{**os.environ, {TOKEN_VARIABLE!r}: token}}, start_new_session=True)"
    )
    process = launcher(code, token, str(folder))
    try:
        assert len(launched_processes(token, folder)) == 1
        kill(process)
        assert gone(token, folder, 60)
    finally:
        end_processes(token, folder)


def test_a_guard_that_is_dismissed_touches_nothing(tmp_path):
    token = uuid.uuid4().hex
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(sleep, env={**os.environ, TOKEN_VARIABLE: token}) as process:
        Guard(token, tmp_path).dismiss()
        assert process.poll() is None
        assert tmp_path.exists()
        process.kill()


@pytest.mark.federation
def test_a_superlink_ends_with_its_killed_launcher(tmp_path):
    code = (
        "import time; from deploy.simulation.superlink import OwnedSuperLink\n"
        "link = OwnedSuperLink(); link.__enter__(); print(link._token, link.folder, flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}\ntime.sleep(600)"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    token, folder = process.stdout.readline().decode().split()
    try:
        assert launched_processes(token, Path(folder))
        kill(process)
        assert gone(token, Path(folder), 60)
    finally:
        end_processes(token, Path(folder))
