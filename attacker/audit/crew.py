"""Who works on chunks: this process, or processes of their own on this machine. What they are sent is text."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from attacker.allocator import keep_freed_memory
from attacker.audit.chunk import Chunk, run_chunk
from attacker.audit.chunk_store import ChunkFolder, ChunkStore


@dataclass(frozen=True)
class Event:
    """What a worker says of its chunk.

    Attributes:
        kind: "progress", "done"; "raised", the chunk cannot be worked on at all; "died", with its worker.
        chunk: Id.
        text: What was raised, or how the worker ended.
        share: Of the chunk that is done.
    """

    kind: Literal["progress", "done", "raised", "died"]
    chunk: str
    text: str = ""
    share: float = 0.0


class Crew(Protocol):
    """Works on chunks."""

    def __enter__(self) -> Crew: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def free(self) -> bool:
        """Whether another chunk can be begun."""

    def begin(self, chunk: Chunk) -> None:
        """Begin a chunk."""

    def wait(self) -> Sequence[Event]:
        """What happened since; waits until something did."""


class OwnProcess:
    """This process works itself, one chunk after another.

    Args:
        store: Where results go.
        watch: Hears of the chunk at hand.
    """

    def __init__(self, store: ChunkStore, watch: Callable[[Event], None]) -> None:
        self._store = store
        self._watch = watch
        self._chunk: Chunk | None = None

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._chunk = None

    def free(self) -> bool:
        """See `Crew`."""
        return self._chunk is None

    def begin(self, chunk: Chunk) -> None:
        """See `Crew`."""
        self._chunk = chunk

    def wait(self) -> Sequence[Event]:
        """See `Crew`."""
        chunk, self._chunk = self._chunk, None
        assert chunk is not None
        return [work(chunk, self._store, lambda share: self._watch(Event("progress", chunk.id, share=share)))]


class Processes:
    """Worker processes on this machine, one chunk each at a time; one that dies is replaced.

    Args:
        workers: How many.
        folder: Of finished chunks; workers write there themselves.
    """

    def __init__(self, workers: int, folder: Path) -> None:
        self._folder = folder
        self._workers = workers
        # Forked copies of a process with threads may hang; new ones import everything again.
        self._fresh = multiprocessing.get_context("spawn")
        self._idle: list[_Worker] = []
        self._busy: dict[Any, tuple[_Worker, str]] = {}

    def __enter__(self) -> Processes:
        self._idle = [self._start(number) for number in range(self._workers)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in [*self._idle, *(one for one, _ in self._busy.values())]:
            worker.process.terminate()
            worker.process.join()
            worker.line.close()
        self._idle, self._busy = [], {}

    @property
    def pids(self) -> list[int]:
        """Of the workers that live."""
        workers = [*self._idle, *(one for one, _ in self._busy.values())]
        return [worker.process.pid for worker in workers if worker.process.pid is not None]

    def free(self) -> bool:
        """See `Crew`."""
        return bool(self._idle)

    def begin(self, chunk: Chunk) -> None:
        """See `Crew`."""
        worker = self._idle.pop()
        self._busy[worker.line] = (worker, chunk.id)
        with suppress(OSError):  # it died while it was idle; `wait` finds the line closed
            worker.line.send_bytes(chunk.to_json().encode())

    def wait(self) -> Sequence[Event]:
        """See `Crew`."""
        return [self._hear(line) for line in connection.wait(list(self._busy))]

    def _hear(self, line: Any) -> Event:
        worker, chunk = self._busy[line]
        try:
            event = Event(**json.loads(line.recv_bytes()))
        except (EOFError, OSError):
            del self._busy[line]
            worker.process.join()
            line.close()
            self._idle.append(self._start(worker.number))
            return Event("died", chunk, text=f"its process ended with code {worker.process.exitcode}")
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
    """The life of a worker: chunks in, events out, until the line is closed."""
    leave_with_parent()
    keep_freed_memory()
    _choose_gpu(number)
    store = ChunkFolder(Path(folder))
    while True:
        try:
            chunk = Chunk.from_json(line.recv_bytes().decode())
            send = _Sender(line, chunk.id)
            event = work(chunk, store, send.progress)
            line.send_bytes(json.dumps(vars(event)).encode())
        except (EOFError, ConnectionError):  # the parent ended, and hears nothing any more
            return


def work(chunk: Chunk, store: ChunkStore, progress: Callable[[float], None] | None = None) -> Event:
    """Work on a chunk and keep what it gives; the event says how it ended."""
    try:
        store.keep(chunk.id, run_chunk(chunk, progress))
    except Exception as error:
        return Event("raised", chunk.id, text=f"{type(error).__name__}: {error}")
    return Event("done", chunk.id)


class _Sender:
    """Sends progress, but not every step of it."""

    def __init__(self, line: Any, chunk: str) -> None:
        self._line = line
        self._chunk = chunk
        self._told = 0.0

    def progress(self, share: float) -> None:
        if share >= self._told + 0.05:
            self._told = share
            self._line.send_bytes(json.dumps(vars(Event("progress", self._chunk, share=share))).encode())


def _choose_gpu(number: int) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def leave_with_parent() -> None:
    """A worker whose parent was killed ends at once, whatever it is doing."""
    parent = multiprocessing.parent_process()

    def leave() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
