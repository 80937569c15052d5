"""Who does jobs: this process, or processes of their own on this machine. What they are sent is text."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from attacker.jobs.allocator import keep_freed_memory
from attacker.jobs.in_time import TimeEnded, call_in_time
from attacker.jobs.job import Event, Job, Tell, work_of
from attacker.jobs.store import FolderStore, JobStore

_LOOK: Final = 0.25
"""Seconds of one wait: a thread that waits longer could not be interrupted, see `call_in_time`."""


class Crew(Protocol):
    """Does jobs."""

    def __enter__(self) -> Crew: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    @property
    def workers(self) -> int:
        """How many jobs are done at a time."""

    def free(self) -> bool:
        """Whether another job can be begun."""

    def begin(self, job: Job) -> None:
        """Begin a job."""

    def wait(self) -> Sequence[Event]:
        """What happened since; waits until something did, the patience for a job is over, or a moment has passed."""


class OwnProcess:
    """This process works itself, one job after another.

    Args:
        store: Where results go.
        watch: Hears of the job at hand.
    """

    def __init__(self, store: JobStore[Any], watch: Callable[[Event], None]) -> None:
        self._store = store
        self._watch = watch
        self._job: Job | None = None

    workers = 1

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._job = None

    def free(self) -> bool:
        """See `Crew`."""
        return self._job is None

    def begin(self, job: Job) -> None:
        """See `Crew`."""
        self._job = job

    def wait(self) -> Sequence[Event]:
        """See `Crew`."""
        job, self._job = self._job, None
        assert job is not None
        return [_in_time(job, self._store, self._watch)]


class Processes:
    """Worker processes on this machine, one job each at a time, begun with their first; one that dies is replaced.

    Args:
        workers: How many.
        folder: Folder of finished jobs; workers write there themselves.
    """

    def __init__(self, workers: int, folder: Path) -> None:
        self._folder = folder
        self.workers = workers
        # Forked copies of a process with threads may hang; new ones import everything again.
        self._fresh = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Any, tuple[_Worker, str]] = {}
        self._ends: dict[Any, float] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in [*self._idle, *(busy for busy, _ in self._busy.values())]:
            worker.process.terminate()
            worker.process.join()
            worker.line.close()
        self._idle, self._busy = [], {}

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers that live."""
        workers = [*self._idle, *(busy for busy, _ in self._busy.values())]
        return [worker.process.pid for worker in workers if worker.process.pid is not None]

    def free(self) -> bool:
        """See `Crew`."""
        return len(self._busy) < self.workers

    def begin(self, job: Job) -> None:
        """See `Crew`."""
        worker = self._idle.pop() if self._idle else self._start(len(self._busy))
        self._busy[worker.line] = (worker, job.id)
        self._ends[worker.line] = time.monotonic() + (math.inf if job.patience is None else job.patience)
        message = {"sent": time.time(), "job": job.to_json()}
        with suppress(OSError):  # it died while it was idle; `wait` finds the line closed
            worker.line.send_bytes(json.dumps(message).encode())

    def wait(self) -> Sequence[Event]:
        """See `Crew`."""
        patience = max(0.0, min(self._ends[line] for line in self._busy) - time.monotonic())
        heard = connection.wait(list(self._busy), min(patience, _LOOK))
        now = time.monotonic()
        late = [line for line in self._busy if line not in heard and self._ends[line] <= now]
        return [*map(self._hear, heard), *map(self._end, late)]

    def _end(self, line: Any) -> Event:
        """Kill a worker that does not return."""
        worker, job = self._busy[line]
        worker.process.kill()
        self._replace(line)
        return Event("ended", job)

    def _replace(self, line: Any) -> None:
        """A new worker for one that is dead, or dying."""
        worker, _ = self._busy.pop(line)
        worker.process.join()
        line.close()
        self._idle.append(self._start(worker.number))

    def _hear(self, line: Any) -> Event:
        worker, job = self._busy[line]
        try:
            event = Event(**json.loads(line.recv_bytes()))
        except (EOFError, OSError):
            self._replace(line)
            return Event("died", job, text=f"its process ended with code {worker.process.exitcode}")
        if event.kind != "progress":
            del self._busy[line]
            self._idle.append(worker)
        return event

    def _start(self, number: int) -> _Worker:
        ours, theirs = self._fresh.Pipe()
        process = self._fresh.Process(target=_serve, args=(theirs, str(self._folder), number), daemon=True)
        # Ctrl-C goes to the whole group, and this process ends its workers; new ones inherit what is blocked. Python's
        # own tracker, which the first start would start, lets the signal through again.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(number, process, ours)


@dataclass(frozen=True)
class _Worker:
    number: int
    process: Any
    line: Any


def _serve(line: Any, folder: str, number: int) -> None:
    """The life of a worker: jobs in, events out, until the line is closed."""
    _leave_with_parent()
    keep_freed_memory()
    _choose_gpu(number)
    while True:
        try:
            job = _received(json.loads(line.recv_bytes()))
            event = do_in_folder(job, Path(folder), _Sender(line, job.id).progress)
            line.send_bytes(json.dumps(vars(event)).encode())
        except (EOFError, ConnectionError):  # the parent ended, and hears nothing any more
            return


def _received(message: dict[str, Any]) -> Job:
    """The job, whose time ran on while this process imported PyTorch."""
    job = Job.from_json(message["job"])
    if job.seconds is None:
        return job
    return replace(job, seconds=max(0.0, job.seconds - (time.time() - message["sent"])))


def _in_time(job: Job, store: JobStore[Any], watch: Callable[[Event], None]) -> Event:
    """Do a job in this process; one that does not return in time is left behind, and keeps nothing."""

    def tell(share: float) -> None:
        watch(Event("progress", job.id, share=share))

    def result() -> Any:
        return work_of(job.work).do(job.content, seconds=job.seconds, tell=tell)

    try:
        outcome = result() if job.patience is None else call_in_time(result, job.patience)
        store.keep(job.id, outcome)
    except TimeEnded:
        return Event("ended", job.id)
    except Exception as error:
        return _raised(job, error)
    return Event("done", job.id)


def _raised(job: Job, error: Exception) -> Event:
    return Event("raised", job.id, text=f"{type(error).__name__}: {error}")


def do_in_folder(job: Job, folder: Path, tell: Tell) -> Event:
    """Do a job and keep its result in a folder; the event says how it ended."""
    try:
        work = work_of(job.work)
        FolderStore(folder, work).keep(job.id, work.do(job.content, seconds=job.seconds, tell=tell))
    except Exception as error:
        return _raised(job, error)
    return Event("done", job.id)


class _Sender:
    """Sends progress, but not every step of it."""

    def __init__(self, line: Any, job: str) -> None:
        self._line = line
        self._job = job
        self._told = 0.0

    def progress(self, share: float) -> None:
        if share >= self._told + 0.05:
            self._told = share
            self._line.send_bytes(json.dumps(vars(Event("progress", self._job, share=share))).encode())


def _choose_gpu(number: int) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _leave_with_parent() -> None:
    """A worker whose parent was killed ends at once, whatever it is doing."""
    parent = multiprocessing.parent_process()

    def leave() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
