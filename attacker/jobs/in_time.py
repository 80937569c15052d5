"""Calls that end in time, whatever they do: in a thread of their own, which is left behind where it does not return.

Code in Python is interrupted at its next step. A single operation in C or C++, such as the factorisation of a huge
matrix, cannot be: it goes on in a thread that nobody waits for, and ends with the process. Under a tracer (a debugger,
coverage) Python 3.11 stands still meanwhile: it looks for the exception before every call, until the thread takes it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_TRIES: Final = 5
_BETWEEN: Final = 0.1
"""Times that a thread is told to stop, and seconds between them: code may catch the first."""

_left_behind: list[threading.Thread] = []


class TimeEnded(RuntimeError):
    """The call did not end in time."""


class _Stop(BaseException):
    """Raised inside a thread that is to stop; nothing that catches exceptions of attacks or models catches it."""


class _Call(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._context = copy_context()
        self.found: list[T] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.found.append(self._context.run(self._work))
        except BaseException as error:  # noqa: BLE001 - it is raised again where it was asked for
            self.error = error

    def stop(self) -> None:
        """Interrupt the thread, and leave it behind where it does not end."""
        for _ in range(_TRIES):
            if not self.thread.is_alive():
                return
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread.ident or 0), ctypes.py_object(_Stop))
            self.thread.join(_BETWEEN)
        if self.thread.is_alive():
            _left_behind.append(self.thread)


def call_in_time(work: Callable[[], T], seconds: float) -> T:
    """What a call gives.

    Args:
        work: The call; whatever it keeps must be kept by who asked for it.
        seconds: After which it is ended.

    Raises:
        TimeEnded: If it was.
    """
    call = _Call(work)
    call.thread.start()
    try:
        call.thread.join(max(0.0, seconds))
    finally:
        if call.thread.is_alive():  # also when the user interrupts
            call.stop()
    if call.found:
        return call.found[0]
    if call.error is None or isinstance(call.error, _Stop):
        raise TimeEnded(f"it did not end within {seconds:.1f} s")
    raise call.error


def any_left_behind() -> bool:
    """Whether a thread still works that nobody waits for; the interpreter must not be taken down under it."""
    return any(thread.is_alive() for thread in _left_behind)
