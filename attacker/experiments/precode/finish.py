"""From finished cells to ``results.json`` and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attacker.experiments.cells import Setup
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.precode.page import render, write_outcome
from attacker.experiments.precode.pictures import galleries
from attacker.experiments.precode.summarise import summarise
from attacker.experiments.precode.summary import Summary
from attacker.experiments.store import Store


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
