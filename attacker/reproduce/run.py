"""Works through the cells of an experiment, leaving out those that are finished."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from attacker.allocator import keep_freed_memory
from attacker.reproduce.cells import KINDS, Cell, Kind, Made
from attacker.reproduce.experiment import Experiment
from attacker.reproduce.scales import Scale
from attacker.reproduce.store import Storable, Store


@dataclass(frozen=True)
class Done:
    """How far the work is.

    Attributes:
        title: Of what was just begun or finished.
        cells: Finished ones.
        of: All.
        share: Of the expected work, in [0, 1].
        seconds_left: A guess from the work of this session; None before there is one.
    """

    title: str
    cells: int
    of: int
    share: float
    seconds_left: float | None


Watcher = Callable[[Done], None]

WORKER_DIED = "a worker process died, perhaps for want of memory; run the same command again, with fewer --workers"


def run_cells(
    experiment: Experiment, cells: Sequence[Cell], folder: Path, *, workers: int = 1, watcher: Watcher | None = None
) -> int:
    """Make every cell that is not finished yet.

    A finished cell is on disk at once; a run that is killed at any moment loses the cells at hand only.

    Args:
        experiment: What the cells belong to.
        cells: Any of it.
        folder: Of the experiment.
        workers: Processes for trainings and attacks, one thread each; 1 works in this process.
        watcher: Told before and after every cell.

    Returns:
        How many were made now.

    Raises:
        ValueError: If the folder holds something else, or a finished cell was altered (all are checked first).
        RuntimeError: If a worker process died.
    """
    store = Store(folder)
    open_cells = [cell for cell in cells if store.read(cell, experiment.recipe(cell)) is None]
    watch = _Watch(cells, open_cells, watcher, partial(_work, experiment.scale))
    with worker_pool(workers) as pool:
        for kind in KINDS:
            own = [cell for cell in open_cells if cell.kind == kind]
            if own and kind == "federation":
                _federations(experiment, own, store, watch)
            else:
                _make_all(pool, partial(make_cell, experiment, folder=store.folder), own, watch)
    return len(open_cells)


class Piece(Storable, Protocol):
    """A piece of work with a name for people."""

    @property
    def title(self) -> str:
        """For people."""


C = TypeVar("C", bound=Piece)


D_contra = TypeVar("D_contra", bound=Piece, contravariant=True)


class Comparison(Protocol[D_contra]):
    """An experiment whose pieces do not need each other; it must be one that pickle takes."""

    def recipe(self, cell: D_contra) -> dict[str, Any]:
        """What a piece's result depends on besides the piece."""

    def make(self, cell: D_contra, store: Store) -> Made:
        """The result of a piece."""

    def cost(self, cell: D_contra) -> float:
        """Expected seconds, roughly."""


def run_pieces(
    comparison: Comparison[C], pieces: Sequence[C], folder: Path, *, workers: int = 1, watcher: Watcher | None = None
) -> int:
    """As `run_cells`, for pieces that may be made in any order; returns how many were made now.

    Raises:
        ValueError: If the folder holds something else, or a finished piece was altered (all are checked first).
        RuntimeError: If a worker process died.
    """
    store = Store(folder)
    left = [one for one in pieces if store.read(one, comparison.recipe(one)) is None]
    watch = _Watch(pieces, left, watcher, comparison.cost)
    with worker_pool(workers) as pool:
        _make_all(pool, partial(_make_piece, comparison, folder=store.folder), left, watch)
    return len(left)


def _make_piece(comparison: Comparison[C], piece: C, folder: Path) -> None:
    store = Store(folder)
    store.write(piece, comparison.recipe(piece), comparison.make(piece, store))


def _make_all(
    pool: ProcessPoolExecutor | None, make: Callable[[C], None], cells: Sequence[C], watch: _Watch[C]
) -> None:
    if cells and pool is not None:
        _in_pool(pool, make, cells, watch)
        return
    for cell in cells:
        watch.begin(cell)
        make(cell)
        watch.end(cell)


def make_cell(experiment: Experiment, cell: Cell, folder: Path) -> None:
    """Make one cell that is no federation, and keep it."""
    from attacker.reproduce.work import make

    store = Store(folder)
    store.write(cell, experiment.recipe(cell), make(experiment, cell, store))


def _federations(experiment: Experiment, cells: Sequence[Cell], store: Store, watch: _Watch[Cell]) -> None:
    from attacker.reproduce.federations import FlowerRunner, federation_settings

    with FlowerRunner(store.folder / "federations") as runner:
        for cell in cells:
            watch.begin(cell)
            run = runner(federation_settings(experiment, cell), partial(watch.within, cell))
            store.write(cell, experiment.recipe(cell), run)
            watch.end(cell)


def _in_pool(pool: ProcessPoolExecutor, make: Callable[[C], None], cells: Sequence[C], watch: _Watch[C]) -> None:
    futures: dict[Future[None], C] = {pool.submit(make, cell): cell for cell in cells}
    watch.begin(cells[0])
    left: set[Future[Any]] = set(futures)
    try:
        while left:
            finished, left = wait(left, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                watch.end(futures[future])
    except BrokenProcessPool as error:
        raise RuntimeError(WORKER_DIED) from error
    finally:
        for future in left:
            future.cancel()


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes of one thread each, which leave with this one; None instead of a single one: this process does it."""
    if workers <= 1:
        yield None
        return
    # Forked copies of a process with threads may hang; new ones import everything again.
    fresh = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=fresh, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        if parent is not None:
            connection.wait([parent.sentinel])
            os._exit(1)

    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=leave_with_parent, daemon=True).start()


class _Watch(Generic[C]):
    """Turns cells begun and finished into shares and a guess of the time left."""

    def __init__(
        self, cells: Sequence[C], open_cells: Sequence[C], watcher: Watcher | None, work: Callable[[C], float]
    ) -> None:
        self._work = work
        self._watcher = watcher
        self._of = len(cells)
        self._finished = len(cells) - len(open_cells)
        self._total = sum(map(self._work, cells))
        self._old = self._total - sum(map(self._work, open_cells))
        self._done = self._old
        self._began = time.monotonic()
        self._tell("", 0.0)

    def begin(self, cell: C) -> None:
        self._tell(cell.title, 0.0)

    def within(self, cell: C, share: float) -> None:
        self._tell(cell.title, share * self._work(cell))

    def end(self, cell: C) -> None:
        self._finished += 1
        self._done += self._work(cell)
        self._tell(cell.title, 0.0)

    def _tell(self, title: str, extra: float) -> None:
        if self._watcher is None:
            return
        fresh = self._done + extra - self._old
        spent = time.monotonic() - self._began
        left = spent / fresh * (self._total - self._done - extra) if fresh > 0 else None
        share = (self._done + extra) / self._total if self._total else 1.0
        self._watcher(Done(title, self._finished, self._of, min(1.0, share), left))


def _work(scale: Scale, cell: Cell) -> float:
    """Expected seconds, roughly: only their proportions matter."""
    costs: dict[Kind, float] = {
        "training": 2.0 + 1.5 * scale.epochs,
        "federation": 15.0 + 2.0 * scale.rounds,
        "attack": 1.0 + (0.0015 * scale.iterations * scale.victims if _searches(cell) else 0.0),
        "choice": 1.0 + 0.3 * scale.victims,
    }
    return costs[cell.kind]


def _searches(cell: Cell) -> bool:
    return any("iterations" in spec for spec in cell.attacks)
