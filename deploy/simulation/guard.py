"""Cleans up after a launcher that was killed: nothing that it started may stay behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deploy.simulation import processes
from deploy.simulation.processes import TOKEN_VARIABLE

# It imports nothing but psutil, and that only when it is needed: memory may be what the launcher was killed for.
_CODE = """
import sys
file, token, folder = sys.argv[1:]
if not sys.stdin.buffer.read():
    import pathlib, runpy, shutil
    runpy.run_path(file)["end_processes"](token, pathlib.Path(folder))
    shutil.rmtree(folder, ignore_errors=True)
"""


class Guard:
    """A process that waits for the end of this one, and then ends a launch as its launcher would have done.

    It reads a pipe whose other end only this process holds; the kernel closes that when the process ends, however it
    ends (kill -9, out of memory).

    Args:
        token: Marks the processes of the launch.
        folder: Folder of the launch; removed at the end.
    """

    def __init__(self, token: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE, str(Path(processes.__file__).resolve()), token, str(folder)],
            # Neither Ctrl-C nor a folder that is gone may end it, nor the clean-up of the launcher itself.
            cwd="/", env={name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE},
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def dismiss(self) -> None:
        """There is nothing left to clean up."""
        self._process.communicate(b"done")
