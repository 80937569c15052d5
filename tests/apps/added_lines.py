"""Puts the README's lines into a copy of somebody's app, at a line that is named by how it begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Added:
    """One line that is added, indented as the line that it stands at.

    Attributes:
        file: Below the app's folder.
        line: What is added.
        before: How the line begins that it goes before; the first one that does.
        after: How the line begins that it goes after; without both, the file's end.
    """

    file: str
    line: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A name that Flower itself has moved since the app was written.

    Attributes:
        file: Below the app's folder.
        old: What the app imports from.
        new: Where flwr has it now.
    """

    file: str
    old: str
    new: str


class NotFound(ValueError):
    """The checkout's app is not the one that the lines were written for."""


def add_lines(app: Path, lines: Iterable[Added]) -> int:
    """Write the lines into the app's files.

    Args:
        app: Folder of the copy.
        lines: In the order in which they are written.

    Returns:
        How many lines were added.

    Raises:
        NotFound: If a file, or the line to stand at, is not there.
    """
    count = 0
    for one in lines:
        path = app / one.file
        if not path.is_file():
            raise NotFound(f"expected {one.file} in {app}; the checkout has another app")
        path.write_text("".join(_with(path.read_text().splitlines(keepends=True), one)))
        count += 1
    return count


def move_names(app: Path, moved: Iterable[Moved]) -> None:
    """Follow what flwr has moved.

    Raises:
        NotFound: If the app does not import it.
    """
    for one in moved:
        path = app / one.file
        text = path.read_text()
        if one.old not in text:
            raise NotFound(f"expected {one.old!r} in {one.file}; the checkout has another app")
        path.write_text(text.replace(one.old, one.new))


def _with(lines: list[str], added: Added) -> list[str]:
    anchor = added.before or added.after
    if not anchor:
        return [*lines, added.line + "\n"]
    for place, line in enumerate(lines):
        if line.lstrip().startswith(anchor):
            indent = line[: len(line) - len(line.lstrip())]
            at = place if added.before else place + 1
            return [*lines[:at], f"{indent}{added.line}\n", *lines[at:]]
    raise NotFound(f"expected a line that begins with {anchor!r} in {added.file}; the checkout has another app")
