"""From finished cells to ``results.json`` and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attacker.reproduce.cells import Setup
from attacker.reproduce.experiment import Experiment
from attacker.reproduce.page import render, write_outcome
from attacker.reproduce.pictures import galleries
from attacker.reproduce.store import Store
from attacker.reproduce.summarise import summarise
from attacker.reproduce.summary import Summary


def finish(
    experiment: Experiment, setups: Sequence[Setup], left_out: Mapping[Setup, str], folder: Path
) -> tuple[Summary, Path]:
    """Write the figures and the page.

    Returns:
        The figures, and where the page is.

    Raises:
        ValueError: If a cell or a file of images is missing or was altered.
        OSError: If something cannot be written.
    """
    store = Store(folder)
    summary = summarise(experiment, setups, left_out, store)
    return summary, write_outcome(summary, render(summary, galleries(experiment, setups, store)), store.folder)
