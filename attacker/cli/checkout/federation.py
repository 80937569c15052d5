"""Progress and failures of the commands that start federations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attacker.cli.progress import Tell, progress_bar

if TYPE_CHECKING:
    from deploy.simulation.submission import RunOutcome


_ROUND: Final = re.compile(r"\[ROUND (\d+)/\d+\]")
"""The strategy logs it when a round begins."""


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
def follow_rounds(tell: Tell) -> Iterator[Callable[[str, int], Callable[[str], None]]]:
    """One bar for federations side by side: makes, of a title and a number of rounds, what hears a run's log."""
    begun: dict[str, int] = {}

    def follow(title: str, rounds: int) -> Callable[[str], None]:
        def on_line(line: str) -> None:
            if started := _ROUND.search(line):
                begun[title] = int(started[1])
                tell(sum(begun.values()), note=f"{title}: round {started[1]} of {rounds}")

        return on_line

    tell(0, note="starting")
    yield follow
    tell(sum(begun.values()), note="done", line=True)


@contextmanager
def federation_progress(title: str, rounds: int) -> Iterator[Callable[[str], None]]:
    """A bar over rounds, fed with the lines of a run's log."""
    with progress_bar(f"federation {title}", total=rounds + 1, keep=True) as tell:

        def on_line(line: str) -> None:
            if started := _ROUND.search(line):
                tell(int(started[1]), note=f"round {started[1]} of {rounds}")

        tell(0, note="starting")
        yield on_line
        tell(rounds + 1, note="done", line=True)
