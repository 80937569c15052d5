"""Lint the prose of the repository: ``python -m prose``; exit code 1 where a text does not keep the rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attacker.cli.main import app
from prose.passages import Passage, of_commands, of_markdown, of_python, of_template
from prose.rules import findings

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("fl_precode", "attacker", "server", "clients", "deploy")
GENERATED: Final = ("codes.md", "licences.md")
"""Pages that are made from texts which are read where they are written."""
SPOKEN: Final = (
    "attacker/attack_sentences.py",
    "attacker/audit_sentences.py",
    "attacker/wording.py",
    "attacker/audit/record/flag_sentences.py",
    "attacker/audit/verdict/",
    "attacker/report/",
)
"""Modules whose strings are all read by people."""


def passages(root: Path) -> Iterator[Passage]:
    """All that is read: pages, help texts, messages, docstrings and templates."""
    yield from of_commands(app, root / "attacker" / "cli")
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield from of_python(path, sentences=path.relative_to(root).as_posix().startswith(SPOKEN))
        for path in sorted((root / package).rglob("*.html.j2")):
            yield from of_template(path)
    for path in (*sorted((root / "docs").rglob("*.md")), *sorted(root.glob("*.md"))):
        if path.name not in (*GENERATED, "CHANGELOG.md"):
            yield from of_markdown(path)


def main() -> int:
    """Print the findings; the exit code."""
    found = findings(passages(ROOT))
    for one in found:
        print(f"{one.path.relative_to(ROOT)}:{one.line}: {one.rule} {one.message}")  # noqa: T201
    print(f"prose: {len(found)} findings")  # noqa: T201
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
