"""Results of cells in order, made ahead by several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing import active_children
from pathlib import Path

import pytest

from attacker.experiments.cells import AttackedVictims, Cell, Setup
from attacker.experiments.defence_search.prefetch import Ahead, Piece
from attacker.experiments.store import Store
from attacker.jobs.run import TRIES
from tests.attacker.reproductions import tiny

_SETUP = Setup(data="digits", model="lenet", defence="none")


def _cell(protocol: str = "fedsgd", attack: str = "first-layer") -> Cell:
    return Cell(
        kind="attack", setup=_SETUP, protocol=protocol, batch_size=1, local_steps=int(protocol == "fedavg"),
        attacks=(attack,),
    )  # fmt: skip


def _pieces(*cells: Cell) -> list[Piece]:
    return [(tiny(), cell) for cell in cells]


def _made(folder: Path, cell: Cell) -> bool:
    return Store(folder).read(cell, tiny().recipe(cell)) is not None


def test_alone_nothing_is_made_that_is_not_read(tmp_path: Path) -> None:
    cells = [_cell(), _cell("fedavg")]
    with Ahead(tmp_path) as ahead, closing(ahead.results(_pieces(*cells))) as results:
        assert next(results)[0] == cells[0]
    assert [_made(tmp_path, cell) for cell in cells] == [True, False]


def test_a_crew_works_ahead_and_results_stay_in_order(tmp_path: Path) -> None:
    cells = [_cell(attack="inverting-gradients:iterations=30"), _cell(), _cell("fedavg")]
    with Ahead(tmp_path, workers=2) as ahead:
        assert [cell for cell, _ in ahead.results(_pieces(*cells))] == cells
        assert isinstance(ahead.result((tiny(), cells[1])), AttackedVictims)
    assert all(_made(tmp_path, cell) for cell in cells)


@contextmanager
def _killing(times: int) -> Iterator[set[int]]:
    """Kill the first so many worker processes as they appear; gives their ids."""
    killed: set[int] = set()
    over = threading.Event()

    def kill() -> None:
        while len(killed) < times and not over.wait(0.05):
            for pid in {worker.pid for worker in active_children() if worker.pid} - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    cell = _cell()
    with Ahead(tmp_path, workers=2) as ahead, _killing(1) as killed:
        assert isinstance(ahead.result((tiny(), cell)), AttackedVictims)
    assert len(killed) == 1
    assert _made(tmp_path, cell)


def test_workers_that_die_again_and_again_are_said_and_their_cell_is_not_there(tmp_path: Path) -> None:
    cell = _cell()
    refused = pytest.raises(RuntimeError, match="fewer --workers")
    with _killing(TRIES + 1), Ahead(tmp_path, workers=2) as ahead, refused:
        ahead.result((tiny(), cell))
    assert not _made(tmp_path, cell)
