"""Results of cells in their order, while the ones that may be wanted next are made already."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from attacker.reproduce.cells import Cell, Made
from attacker.reproduce.experiment import Experiment
from attacker.reproduce.run import WORKER_DIED, make_cell, worker_pool
from attacker.reproduce.store import Store


class Ahead:
    """Cells of an experiment, made as far ahead as there are processes.

    What is read does not depend on the number of processes. Cells that were begun and are not wanted any more are
    finished and kept, unless none of their time was spent.

    Args:
        experiment: What the cells belong to.
        folder: Of finished cells.
        workers: Processes, one thread each; 1 works in this process, and on nothing ahead.
    """

    def __init__(self, experiment: Experiment, folder: Path, *, workers: int = 1) -> None:
        self._experiment = experiment
        self._store = Store(folder)
        self._workers = workers
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._pool = self._stack.enter_context(worker_pool(self._workers))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def results(self, cells: Iterable[Cell]) -> Generator[tuple[Cell, Made], None, None]:
        """Each cell with its result, in the given order; close it to want no more.

        Raises:
            ValueError: If a finished cell was altered.
            RuntimeError: If a worker process died.
        """
        begun: deque[tuple[Cell, Future[None] | None]] = deque()
        try:
            for cell in cells:
                begun.append((cell, self._begin(cell)))
                if len(begun) >= self._workers:
                    yield self._finished(*begun.popleft())
            while begun:
                yield self._finished(*begun.popleft())
        finally:
            for _, future in begun:
                if future is not None:
                    future.cancel()

    def result(self, cell: Cell) -> Made:
        """The result of one cell; raises as `results` does."""
        return self._finished(cell, self._begin(cell))[1]

    def _begin(self, cell: Cell) -> Future[None] | None:
        if self._pool is None or self._read(cell) is not None:
            return None
        return self._pool.submit(make_cell, self._experiment, cell, self._store.folder)

    def _finished(self, cell: Cell, future: Future[None] | None) -> tuple[Cell, Made]:
        try:
            if future is not None:
                future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(WORKER_DIED) from error
        found = self._read(cell)
        if found is None:
            make_cell(self._experiment, cell, self._store.folder)
            found = self._read(cell)
        assert found is not None
        return cell, found

    def _read(self, cell: Cell) -> Made | None:
        return self._store.read(cell, self._experiment.recipe(cell))
