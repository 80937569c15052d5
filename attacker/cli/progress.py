"""Progress of a long command: output within two seconds, and every two seconds until its end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, TextIO

if TYPE_CHECKING:
    from attacker.jobs.progress import State, Watch

EVERY: Final = 1.5
"""Seconds between two lines: what holds the interpreter for half a second leaves two without a word."""

_TITLE: Final = 46
"""Characters that tell what is being done."""
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


class Tell(Protocol):
    """Moves a bar of `progress_bar`."""

    def __call__(self, done: float, text: str = "", note: str = "", *, line: bool = False) -> None:
        """Show how far the work is.

        Args:
            done: Part of the bar's total that is done.
            text: What is being done; empty leaves what stands there.
            note: Beside the bar.
            line: Whether it is worth a line of its own where stderr is no terminal, as in a log.
        """


@contextmanager
def progress_bar(title: str, *, total: float = 1.0, keep: bool = False) -> Iterator[Tell]:
    """A bar on stderr with the time that has passed; where stderr is no terminal, lines for what is worth one.

    Args:
        title: What is done at first.
        total: What is to be done.
        keep: Leave the bar on the terminal when all is done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn(f"{{task.description:<{_TITLE}}}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=not keep, disable=not console.is_terminal) as shown:
        task = shown.add_task(title[:_TITLE], total=total, note="")

        def tell(done: float, text: str = "", note: str = "", *, line: bool = False) -> None:
            nonlocal title
            title = text or title
            shown.update(task, description=title[:_TITLE], completed=done, note=note)
            if line and not console.is_terminal:
                said = " ".join(filter(None, (f"{done / total:4.0%}", title, note)))
                console.print(said, markup=False, highlight=False, soft_wrap=True)

        yield tell


def state_line(state: State) -> str:
    """One line about how far a campaign is."""
    parts = [f"{state.title.partition(':')[0]}: {state.title.partition(': ')[2].partition(':')[0]}"]
    parts.append(f"{state.done} of {state.of} chunks")
    parts.append(f"{100 * state.share:.0f} %")
    if state.failing:
        parts.append(f"{state.failing} failing")
    if state.best is not None:
        parts.append(f"best SSIM {state.best:.2f}")
    if state.seconds_left is not None:
        parts.append(f"{duration(state.seconds_left)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(0.4), duration(75), duration(4000)
    ('0.4 s', '75 s', '67 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
