"""A SuperLink of our own on 127.0.0.1: free port, own FLWR_HOME, empty working folder, ended whatever happens.

Where this process is killed itself, a `Guard` ends what it started.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from deploy.simulation.guard import Guard
from deploy.simulation.processes import TOKEN_VARIABLE, end_processes
from deploy.simulation.programs import write_programs

CONNECTION = "launch"
START_SECONDS = 90.0


class LaunchError(RuntimeError):
    """The federation could not be started at all."""


_COLOUR = ("FORCE_COLOR", "CLICOLOR_FORCE")
"""Notebooks and CI set these; Flower's answers in JSON would then hold escape sequences."""


class OwnedSuperLink:
    """Flower's simulation SuperLink as a context manager.

    Args:
        port: On 127.0.0.1; 0 picks a free one.
        environment: Extra variables for every process that is started.

    Attributes:
        folder: Temporary folder of this SuperLink, removed at the end.

    Raises:
        LaunchError: On entering, if the port is taken or the SuperLink does not come up.
    """

    def __init__(self, *, port: int = 0, environment: Mapping[str, str] | None = None) -> None:
        self._port = port
        self._extra = dict(environment or {})
        self._token = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None

    def __enter__(self) -> OwnedSuperLink:
        # A short path: Ray puts Unix sockets, limited to 107 characters, below it.
        self.folder = Path(tempfile.mkdtemp(prefix="flp-"))
        try:
            self._guard = Guard(self._token, self.folder)
            self._start(self._port or _free_port())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def flwr(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Flower's command line against this SuperLink, its output in a pipe."""
        return subprocess.Popen(
            [str(self._programs / "flwr"), *arguments], cwd=self._cwd, env=self._environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip

    def close(self) -> None:
        """End every process and remove the folder; safe to call twice."""
        with _uninterrupted():
            end_processes(self._token, self.folder)
            if self._process is not None:
                self._process.wait()
                self._process = None
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._guard is not None:
                self._guard.dismiss()
                self._guard = None

    def _start(self, port: int) -> None:
        if _taken(port):
            raise LaunchError(f"port {port} on 127.0.0.1 is taken by another program; use another, or 0 for a free one")
        self._home, self._cwd = self.folder / "home", self.folder / "cwd"
        self._home.mkdir()
        # Ray's workers import from the SuperLink's working folder first: it must be empty.
        self._cwd.mkdir()
        try:
            self._programs = write_programs(self.folder / "bin")
        except FileNotFoundError as error:
            raise LaunchError(str(error)) from None
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        with (self.folder / "superlink.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "flower-superlink"), "--insecure", "--simulation",
                 "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port),
                 "--database", str(self._home / "state.db")],
                cwd=self._cwd, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._await_health(self._process, port)

    def _await_health(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        # This machine's own port: never through a proxy.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while process.poll() is None and time.monotonic() < deadline:
            try:
                with direct.open(f"http://127.0.0.1:{port}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        tail = (self.folder / "superlink.log").read_text(errors="replace")[-1500:]
        raise LaunchError(f"Flower's SuperLink did not come up on port {port}. Its last words:\n{tail}")

    def _environment(self) -> dict[str, str]:
        # Ray's programs lie beside Python, Flower's in a folder of ours.
        programs = (str(self._programs), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
        return {
            **{name: value for name, value in os.environ.items() if name not in _COLOUR},
            "PATH": os.pathsep.join(programs),
            "FLWR_HOME": str(self._home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray would merge equal lines of different clients into one.
            "RAY_DEDUP_LOGS": "0",
            "RAY_TMPDIR": str(self.folder),
            **{name: _with_this_machine(os.environ.get(name, "")) for name in ("NO_PROXY", "no_proxy")},
            TOKEN_VARIABLE: self._token,
            **self._extra,
        }


def _with_this_machine(no_proxy: str) -> str:
    """A proxy list with this machine's addresses taken out."""
    return ",".join(filter(None, [no_proxy, "127.0.0.1", "localhost"]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        # As a server does: a port whose last connection has just closed is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not stop the cleaning up. Signals can be set in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
