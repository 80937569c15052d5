"""What a long command shows while it works: something within two seconds, and every two seconds until its end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from attacker.audit.campaign import CampaignState, Watch

EVERY: Final = 2.0
"""Seconds without a word, at most."""

_BLANK: Final = "\r\x1b[2K"


class Ticker:
    """Says what is being done and for how long, on stderr, from a thread of its own.

    On a terminal one line is written over and over; elsewhere, as in a log, each is a line of its own.

    Args:
        doing: What is done at first.
        stream: Where to; None is stderr.
        every: Seconds between two lines.
    """

    def __init__(self, doing: str, *, stream: TextIO | None = None, every: float = EVERY) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._doing = doing
        self._began = self._told = time.monotonic()
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        self.quiet()

    def do(self, doing: str) -> None:
        """What is done from now on; told at the next turn."""
        with self._lock:
            self._doing = doing

    def say(self, text: str) -> None:
        """Print a paragraph between the lines."""
        with self._lock:
            self.quiet()
            self._write(f"{text}\n")
            self._told = time.monotonic()

    def quiet(self) -> None:
        """Take the line from the terminal, so that something else can be printed."""
        if self._stream.isatty():
            self._write(_BLANK)

    def _run(self) -> None:
        while not self._end.wait(max(0.05, self._told + self._every - time.monotonic())):
            with self._lock:
                if time.monotonic() - self._told >= self._every:
                    self._tick()

    def _tick(self) -> None:
        self._told = time.monotonic()
        line = f"  {self._told - self._began:4.0f} s  {self._doing}"
        self._write(f"{_BLANK}{line}" if self._stream.isatty() else f"{line}\n")

    def _write(self, text: str) -> None:
        # A closed pipe must not end the work that is reported on.
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._end.set()


def campaign_watch(ticker: Ticker) -> Watch:
    """Tells the ticker how far a campaign is."""
    return lambda state: ticker.do(state_line(state))


@contextmanager
def audit_progress() -> Iterator[Callable[[str, float], None]]:
    """A progress bar on stderr for an audit at once; nothing is drawn where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description:<28}", markup=False)
    columns = (text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("audit", total=1.0)
        yield lambda text, done: bar.update(task, description=text, completed=done)


def state_line(state: CampaignState) -> str:
    """One line about how far a campaign is."""
    from attacker.cli_plan import duration

    parts = [f"{state.title.partition(':')[0]}: {state.title.partition(': ')[2].partition(':')[0]}"]
    parts.append(f"{state.done} of {state.of} chunks")
    parts.append(f"{100 * state.share:.0f} %")
    if state.failing:
        parts.append(f"{state.failing} failing")
    if state.best_ssim is not None:
        parts.append(f"best SSIM {state.best_ssim:.2f}")
    if state.seconds_left is not None:
        parts.append(f"{duration(state.seconds_left)} left")
    return " · ".join(parts)
