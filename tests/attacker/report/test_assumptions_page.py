"""docs/reference/assumptions.md names every assumption of the code, every code of what is missing, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from attacker.audit.record.mends import MENDS

ROOT = Path(__file__).resolve().parents[3]


def listed(heading: str) -> set[str]:
    page = (ROOT / "docs" / "reference" / "assumptions.md").read_text()
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE))


def test_every_assumption_is_explained():
    sources = [path.read_text() for part in ("fl_precode", "attacker") for path in (ROOT / part).rglob("*.py")]
    made = {code for text in sources for code in re.findall(r'Assumption\(\s*code="([a-z-]+)"', text)}
    assert len(made) > 5
    assert listed("Assumptions") == made


def test_every_missing_thing_is_explained():
    assert listed("What is missing") == set(MENDS)
