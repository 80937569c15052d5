"""Works through the cells of an experiment, leaving out those that are finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from attacker.experiments.cell_work import Experimental, job_of
from attacker.experiments.cells import KINDS, Cell
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.store import Storable, Store
from attacker.jobs.job import Event, Job
from attacker.jobs.progress import Progress, Watch
from attacker.jobs.run import hire_for, work_through
from attacker.jobs.workers import Crew

C = TypeVar("C", bound=Storable)


def run_cells(
    experiment: Experiment,
    cells: Sequence[Cell],
    folder: Path,
    *,
    workers: int = 1,
    ray_address: str = "",
    watch: Watch | None = None,
) -> int:
    """Make every cell that is not finished yet.

    A finished cell is on disk at once; a run that is killed at any moment loses the cells at hand only.

    Args:
        experiment: What the cells belong to.
        cells: Any of it.
        folder: Folder of the experiment.
        workers: Processes for trainings and attacks, one thread each; 1 works in this process.
        ray_address: Address of an existing Ray cluster, which does those instead; its nodes must see the folder and the
            images.
        watch: Told before and after every cell.

    Returns:
        How many were made now.

    Raises:
        ValueError: If the folder holds something else, or a finished cell was altered (all are checked first).
        RuntimeError: If a cell cannot be made, or its worker process died again and again.
    """
    with _left(experiment, cells, folder, workers, ray_address, watch) as session:
        for kind in KINDS:
            unfinished = [cell for cell in session.jobs if cell.kind == kind]
            if unfinished and kind == "federation":
                _federations(experiment, unfinished, session)
            else:
                session.make(unfinished)
        return len(session.jobs)


def run_pieces(
    experiment: Experimental[C],
    pieces: Sequence[C],
    folder: Path,
    *,
    workers: int = 1,
    ray_address: str = "",
    watch: Watch | None = None,
) -> int:
    """As `run_cells`, for pieces that may be made in any order; returns how many were made now, and raises the same."""
    with _left(experiment, pieces, folder, workers, ray_address, watch) as session:
        session.make(list(session.jobs))
        return len(session.jobs)


@dataclass(frozen=True)
class _Session(Generic[C]):
    """Cells that are not finished, with their jobs, and who works on them."""

    store: Store
    jobs: dict[C, Job]
    crew: Crew
    progress: Progress

    def make(self, cells: Sequence[C]) -> None:
        work_through([self.jobs[cell] for cell in cells], self.store.cells, self.crew, self.progress)


@contextmanager
def _left(
    experiment: Experimental[C],
    cells: Sequence[C],
    folder: Path,
    workers: int,
    ray_address: str,
    watch: Watch | None,
) -> Iterator[_Session[C]]:
    store = Store(folder)
    threads = 1 if workers > 1 or ray_address else None
    jobs = {cell: job_of(experiment, cell, store, threads=threads) for cell in cells}
    left = {cell: job for cell, job in jobs.items() if store.read(cell, experiment.recipe(cell)) is None}
    progress = Progress(jobs.values(), watch)
    progress.finish_old(job for cell, job in jobs.items() if cell not in left)
    ray_address = ray_address if left else ""  # nobody looks for a cluster when everything is done
    hire = hire_for(store.cells, workers=workers, ray_address=ray_address, gpu=experiment.device == "cuda")
    with hire(progress.hear) as crew:
        yield _Session(store, left, crew, progress)


def _federations(experiment: Experiment, cells: Sequence[Cell], session: _Session[Cell]) -> None:
    """Federations are many processes each, and run one after another."""
    from attacker.experiments.federations import FlowerRunner, federation_settings

    def within(job: Job, share: float) -> None:
        session.progress.hear(Event("progress", job.id, share=share))

    with FlowerRunner(session.store.folder / "federations") as runner:
        for cell in cells:
            job = session.jobs[cell]
            session.progress.begin(job)
            run = runner(federation_settings(experiment, cell), partial(within, job))
            session.store.write(cell, experiment.recipe(cell), run)
            session.progress.finish(job)
