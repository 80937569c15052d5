"""Assumption about an update that nobody announced: named, so that a reader can doubt and settle it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """One guess about what an update means.

    Attributes:
        code: Stable name, such as ``one-pass``; docs/reference/assumptions.md lists all of them.
        sentence: What is taken to be so, and what it was concluded from.
        doubt: What would show it wrong.
        line: The line for the notes beside the tape that settles it; empty where no line can.
    """

    code: str
    sentence: str
    doubt: str
    line: str = ""
