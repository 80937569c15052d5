"""Cells of experiments as jobs: an experiment travels as plain data, and is put together again by whoever works."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import torch
from pydantic import TypeAdapter

from attacker.experiments.cells import Made
from attacker.experiments.store import CellCodec, Storable, Store, content_of
from attacker.jobs.job import Job, Tell

C_contra = TypeVar("C_contra", bound=Storable, contravariant=True)


class Experimental(Protocol[C_contra]):
    """An experiment that is made of cells: a dataclass of plain data, as its cells are, in a module of its own."""

    @property
    def device(self) -> str:
        """``auto``, ``cpu`` or ``cuda``."""

    def recipe(self, cell: C_contra) -> dict[str, Any]:
        """What a cell's result depends on besides the cell."""

    def make(self, cell: C_contra, store: Store) -> Made:
        """The result of a cell."""

    def cost(self, cell: C_contra) -> float:
        """Expected seconds, roughly: only their proportions matter."""


class CellWork(CellCodec):
    """Makes a cell; see `Work`."""

    def do(self, content: Mapping[str, Any], *, seconds: float | None, tell: Tell) -> Mapping[str, Any]:
        """See `Work`; cells are made whole, whatever time they take."""
        if content["threads"] is not None:
            torch.set_num_threads(content["threads"])
        experiment, cell = _dataclass(content["experiment"]), _dataclass(content["cell"])
        made = experiment.make(cell, Store(Path(content["folder"])))
        return content_of(cell, experiment.recipe(cell), made)


CELL: Final = CellWork()


def job_of(experiment: Experimental[C_contra], cell: C_contra, store: Store, *, threads: int | None = None) -> Job:
    """The job of a cell.

    Args:
        experiment: What it belongs to.
        cell: What is made.
        store: Where its result goes, and where those are that it depends on.
        threads: Threads of the process that works on it; None leaves them as they are.
    """
    return Job(
        id=store.name(cell, experiment.recipe(cell)),
        work="attacker.experiments.cell_work:CELL",
        title=cell.title,
        content={
            "experiment": _content(experiment),
            "cell": _content(cell),
            "folder": str(store.folder),
            "threads": threads,
        },
        cost=experiment.cost(cell),
    )


def _content(value: Any) -> dict[str, Any]:
    kind = type(value)
    return {"class": f"{kind.__module__}:{kind.__qualname__}", "values": asdict(value)}


def _dataclass(content: Mapping[str, Any]) -> Any:
    module, _, name = content["class"].partition(":")
    return TypeAdapter(getattr(importlib.import_module(module), name)).validate_python(content["values"])
