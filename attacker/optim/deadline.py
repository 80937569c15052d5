"""A time by which a search is to end: whoever starts it sets one, its loops ask, and what was found is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar


class Deadline:
    """A moment, and whether a loop was ended by it.

    Args:
        seconds: From now until then; what is past already has come.
        outer: Within which this one was set; the earlier of the two counts.

    Attributes:
        cut: Whether anything was ended before its time by this one, or by one within it.
        looks: When loops asked, by `time.monotonic`, and of how many victims their iteration was.
    """

    def __init__(self, seconds: float, outer: Deadline | None = None) -> None:
        until = time.monotonic() + max(0.0, seconds)
        self.until: float = until if outer is None else min(until, outer.until)
        self.cut = False
        self.looks: list[tuple[float, int]] = []
        self._outer = outer

    @property
    def left(self) -> float:
        """Seconds until then, not negative."""
        return max(0.0, self.until - time.monotonic())

    def has_come(self, victims: int = 1) -> bool:
        """Whether a loop is to end, which it is then taken to do."""
        self._note((time.monotonic(), victims))
        if self.left > 0:
            return False
        deadline: Deadline | None = self
        while deadline is not None:
            deadline.cut, deadline = True, deadline._outer
        return True

    def _note(self, look: tuple[float, int]) -> None:
        self.looks.append(look)
        if self._outer is not None:
            self._outer._note(look)


_CURRENT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def within(seconds: float) -> Iterator[Deadline]:
    """Inside the block searches end by then; the first iteration of each is always made.

    Args:
        seconds: From now on. A block within another ends with that one at the latest.
    """
    token = _CURRENT.set(Deadline(seconds, _CURRENT.get()))
    try:
        current = _CURRENT.get()
        assert current is not None
        yield current
    finally:
        _CURRENT.reset(token)


def time_is_up(victims: int = 1) -> bool:
    """Whether a loop is to end after the iteration that it has made; never without a deadline.

    Args:
        victims: Updates that one iteration of the loop is about.

    >>> time_is_up()
    False
    >>> with within(0.0) as deadline:
    ...     print(time_is_up(), deadline.cut)
    True True
    """
    current = _CURRENT.get()
    return current is not None and current.has_come(victims)


def share_of_time(number: float, parts: float) -> AbstractContextManager[object]:
    """Inside the block one of several parts of equal length has its share of the time that is left.

    Args:
        number: Number of the part, from 0 on; those before it are done.
        parts: In all; a last one that is longer counts for as many as it is as long.
    """
    current = _CURRENT.get()
    if current is None or parts - number <= 1:
        return nullcontext()
    return within(current.left / (parts - number))
