"""Results of cells in their order, while the ones that may be wanted next are made already."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from torch import Tensor

from attacker.experiments.cell_work import job_of
from attacker.experiments.cells import Cell, Made, Setup, Training
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.store import Store
from attacker.jobs.job import Job
from attacker.jobs.progress import Progress
from attacker.jobs.run import Foreman, Terms, hire_for

Piece = tuple[Experiment, Cell]
"""A cell, and the experiment that it is made under: its sizes and its seed."""


class Ahead:
    """Cells of experiments, made as far ahead as there are processes.

    What is read does not depend on the number of processes. Cells that were begun and are not wanted any more are
    finished and kept, unless none of their time was spent.

    Args:
        folder: Folder of finished cells.
        workers: Processes, one thread each; 1 works in this process, and on nothing ahead.
    """

    def __init__(self, folder: Path, *, workers: int = 1) -> None:
        self._store = Store(folder)
        self._workers = workers
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        progress = Progress([])
        crew = self._stack.enter_context(hire_for(self._store.cells, workers=self._workers)(progress.hear))
        self._foreman = Foreman(self._store.cells, crew, progress, Terms())
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._stack:
            self._foreman.withdraw()
            while kind is None and self._foreman.busy:
                self._foreman.step()

    def results(self, pieces: Iterable[Piece]) -> Generator[tuple[Cell, Made], None, None]:
        """Each cell with its result, in the given order; close it to want no more.

        Raises:
            ValueError: If a finished cell was altered.
            RuntimeError: If a cell cannot be made, or its worker process died again and again.
        """
        begun: deque[Piece] = deque()
        try:
            for piece in pieces:
                begun.append(piece)
                if self._workers > 1 and self._read(piece) is None:
                    self._foreman.add(self._job(piece))
                    self._foreman.begin()
                if len(begun) >= self._workers:
                    yield self._finished(begun.popleft())
            while begun:
                yield self._finished(begun.popleft())
        finally:
            self._foreman.withdraw()

    def result(self, piece: Piece) -> Made:
        """The result of one cell; raises as `results` does."""
        return self._finished(piece)[1]

    def trained(self, experiment: Experiment, setup: Setup, epoch: int) -> dict[str, Tensor]:
        """The weights of a central training after an epoch; raises as `results` does."""
        made = self.result((experiment, Cell(kind="training", setup=setup)))
        assert isinstance(made, Training)
        return self._store.load(made.weights[epoch])

    def _finished(self, piece: Piece) -> tuple[Cell, Made]:
        made = self._read(piece)
        if made is None:
            self._foreman.add(self._job(piece))
        while made is None:
            self._foreman.step()
            made = self._read(piece)
        return piece[1], made

    def _job(self, piece: Piece) -> Job:
        return job_of(*piece, self._store, threads=1 if self._workers > 1 else None)

    def _read(self, piece: Piece) -> Made | None:
        experiment, cell = piece
        return self._store.read(cell, experiment.recipe(cell))
