"""Results of cells in order, made ahead by several processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path

import pytest

from attacker.reproduce.ahead import Ahead
from attacker.reproduce.cells import AttackRun, Cell, Setup
from attacker.reproduce.store import Store
from tests.attacker.reproductions import tiny

_SETUP = Setup(data="digits", model="lenet", defence="none")


def _cell(protocol: str = "fedsgd", attack: str = "first-layer") -> Cell:
    return Cell(
        kind="attack", setup=_SETUP, protocol=protocol, batch_size=1, local_steps=int(protocol == "fedavg"),
        attacks=(attack,),
    )  # fmt: skip


def _made(folder: Path, cell: Cell) -> bool:
    return Store(folder).read(cell, tiny().recipe(cell)) is not None


def test_alone_nothing_is_made_that_is_not_read(tmp_path: Path) -> None:
    cells = [_cell(), _cell("fedavg")]
    with Ahead(tiny(), tmp_path) as ahead, closing(ahead.results(cells)) as results:
        assert next(results)[0] == cells[0]
    assert [_made(tmp_path, cell) for cell in cells] == [True, False]


def test_a_crew_works_ahead_and_results_stay_in_order(tmp_path: Path) -> None:
    cells = [_cell(attack="inverting-gradients:iterations=30"), _cell(), _cell("fedavg")]
    with Ahead(tiny(), tmp_path, workers=2) as ahead:
        assert [cell for cell, _ in ahead.results(cells)] == cells
        assert isinstance(ahead.result(cells[1]), AttackRun)
    assert all(_made(tmp_path, cell) for cell in cells)


def test_a_worker_that_dies_is_said_and_its_cell_is_not_there(tmp_path: Path) -> None:
    cell = _cell(attack="inverting-gradients:iterations=100000")

    def kill() -> None:
        while not (workers := active_children()):
            time.sleep(0.05)
        time.sleep(0.5)
        assert workers[0].pid is not None
        os.kill(workers[0].pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with Ahead(tiny(), tmp_path, workers=2) as ahead, pytest.raises(RuntimeError, match="fewer --workers"):
        ahead.result(cell)
    assert not _made(tmp_path, cell)
