"""Progress and failures of the commands that start federations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attacker.cli.progress import progress_bar

if TYPE_CHECKING:
    from deploy.simulation.submission import RunOutcome


class JobFailed(RuntimeError):
    """The job was started and did not succeed."""


def keep_and_check(outcome: RunOutcome, folder: Path) -> None:
    """Keep a federation's log beside its results.

    Raises:
        JobFailed: If the federation failed; it says why, and where the log is.
        OSError: If the log cannot be written.
    """
    log = outcome.keep_log(folder)
    if not outcome.completed:
        raise JobFailed(f"the federation failed: {outcome.reason}. The whole log is in {log}")


@contextmanager
def federation_progress(title: str, rounds: int) -> Iterator[Callable[[str], None]]:
    """A bar over rounds, fed with the lines of a run's log."""
    with progress_bar(f"federation {title}", total=rounds + 1, keep=True) as tell:

        def on_line(line: str) -> None:
            # The strategy logs this line when a round begins.
            if started := re.search(r"\[ROUND (\d+)/\d+\]", line):
                tell(int(started[1]), note=f"round {started[1]} of {rounds}")

        tell(0, note="starting")
        yield on_line
        tell(rounds + 1, note="done", line=True)
