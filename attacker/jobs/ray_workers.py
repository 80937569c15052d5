"""Jobs on an existing Ray cluster. Ray carries text; files lie where all nodes see them."""

from __future__ import annotations

import math
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from attacker.jobs.job import Event, Job
from attacker.jobs.workers import do_in_folder

_WAIT = 5.0
"""Seconds of one wait for the cluster."""

# Ray ends its driver from C++, where no Python hears of it, when the node that it is connected to is lost.
_LAST_WORDS = """
import sys
if not sys.stdin.buffer.read():
    print("Error: this command was ended before its time, as Ray does when it loses its cluster. What was finished is "
          "kept; the same command goes on from there, without --ray-address on this machine alone", file=sys.stderr)
"""


class RayCluster:
    """A cluster that is running already; each job is a task on one of its processors, or on a GPU.

    Args:
        address: ``auto`` or ``host:port``.
        folder: Folder of finished jobs, on storage that all nodes share.
        gpu: Whether tasks ask for a GPU.

    Raises:
        RuntimeError: On entering, if there is no Ray here, or no such cluster; later, if it went away.
    """

    def __init__(self, address: str, folder: Path, *, gpu: bool = False) -> None:
        self._address = address
        self._folder = folder
        self._gpu = gpu
        self._running: dict[Any, str] = {}
        self._ends: dict[Any, float] = {}
        self._last_words: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RayCluster:
        try:
            import ray
        except ImportError as error:
            raise RuntimeError(
                f"--ray-address needs Ray on this machine ({error}): pip install 'fl-precode[simulation]'"
            ) from None
        if self._address != "auto":
            _reach(self._address)
        root = str(Path(__file__).resolve().parents[2])
        environment = {"env_vars": {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}}
        try:
            ray.init(address=self._address, runtime_env=environment, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RuntimeError(_unusable(self._address, str(error))) from error
        self._last_words = subprocess.Popen(
            [sys.executable, "-c", _LAST_WORDS],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._ray: Any = ray  # partly untyped
        self._head = str(ray.get_runtime_context().gcs_address)
        # A task that died is begun again by `run_jobs`, which counts how often.
        options: dict[str, Any] = {"max_retries": 0, **({"num_gpus": 1} if self._gpu else {"num_cpus": 1})}
        self._task = ray.remote(**options)(run_text)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._running = {}
        self._ray.shutdown()
        if self._last_words is not None:
            self._last_words.communicate(b"done")

    @property
    def workers(self) -> int:
        """See `Crew`."""
        return self._slots()

    def free(self) -> bool:
        """Whether another job can be begun: twice the cluster's slots are, so that none waits for this process.

        Where jobs have their time, it must not run while they wait: then as many are as there are slots.
        """
        return len(self._running) < (1 if self._ends else 2) * self._slots()

    def begin(self, job: Job) -> None:
        """See `Crew`."""
        reference = self._task.remote(job.to_json(), str(self._folder))
        self._running[reference] = job.id
        if job.patience is not None:
            self._ends[reference] = time.monotonic() + job.patience

    def wait(self) -> Sequence[Event]:
        """See `Crew`; also returns, with nothing, after a few seconds."""
        ready, _ = self._ray.wait(list(self._running), timeout=self._patience())
        if not ready:
            # Ray itself would wait for a minute for a cluster that is gone, and then end this process.
            _reach(self._head)
            self._slots()
        now = time.monotonic()
        late = [
            reference
            for reference, end in self._ends.items()
            if reference not in ready and reference in self._running and end <= now
        ]
        return [*(self._event(reference) for reference in ready), *(self._end(reference) for reference in late)]

    def _patience(self) -> float:
        """Seconds of one wait."""
        ends = [end for reference, end in self._ends.items() if reference in self._running]
        return max(0.0, min(_WAIT, min(ends, default=math.inf) - time.monotonic()))

    def _end(self, reference: Any) -> Event:
        """Kill a task that does not return."""
        self._ray.cancel(reference, force=True)
        return Event("ended", self._running.pop(reference))

    def _slots(self) -> int:
        """Jobs that the cluster can do at a time."""
        kind = "GPU" if self._gpu else "CPU"
        slots = int(self._ray.cluster_resources().get(kind, 0))
        if slots < 1:
            raise RuntimeError(
                f"the Ray cluster at {self._head} has no {kind} (any more); start a node that has one. What was "
                "finished is kept; the same command goes on from there"
            )
        return slots

    def _event(self, reference: Any) -> Event:
        job = self._running.pop(reference)
        try:
            problem = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Event("died" if self._was_lost(error) else "raised", job, text=text)
        return Event("raised", job, text=problem) if problem else Event("done", job)

    def _was_lost(self, error: Exception) -> bool:
        """Whether it can go better elsewhere or in smaller pieces; a node that cannot import this package cannot."""
        known = self._ray.exceptions
        return isinstance(error, known.WorkerCrashedError | known.NodeDiedError | known.OutOfMemoryError)


def _reach(address: str) -> None:
    """Whether anything answers there; Ray takes minutes to find that nothing does.

    Raises:
        RuntimeError: If not.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
    except OSError as error:
        raise RuntimeError(_unusable(address, str(error))) from None


def is_address(text: str) -> bool:
    """Whether the text can name an existing cluster.

    >>> [is_address(text) for text in ("auto", "10.0.0.1:6379", "local", "ray://head:10001", "head:99999")]
    [True, True, False, False, False]
    """
    match = re.fullmatch(r"([^/:\s]+|\[[0-9a-fA-F:]+\]):(\d{1,5})", text)
    return text == "auto" or (match is not None and 0 < int(match[2]) < 65536)


def _unusable(address: str, why: str) -> str:
    return (
        f"there is no Ray cluster to work with at {address!r} ({why}); start one with `ray start --head`, which prints "
        "its address, or leave --ray-address out to work on this machine alone. What was finished is kept"
    )


def run_text(job: str, folder: str) -> str:
    """The task: do a job given as text; returns what it raised as text, empty when it is done."""
    if not Path(folder).is_dir():
        return (
            f"FileNotFoundError: {folder} is not there on this node of the Ray cluster; --out and what is read must "
            "lie on storage that all nodes share, under the same path"
        )
    return do_in_folder(Job.from_json(job), Path(folder), lambda _share: None).text
