"""From finished cells to ``results.json`` and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attacker.reproduce.cells import Setup
from attacker.reproduce.experiment import Experiment
from attacker.reproduce.page import write_page
from attacker.reproduce.pictures import galleries
from attacker.reproduce.store import Store
from attacker.reproduce.summarise import summarise
from attacker.reproduce.summary import Summary
from fl_precode.private_file import write_private

RESULTS_NAME = "results.json"


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
    write_private(store.folder / RESULTS_NAME, (summary.model_dump_json(indent=1) + "\n").encode())
    return summary, write_page(summary, galleries(experiment, setups, store), store.folder)
