"""The page of the public API is what the docstrings say, and names everything that is promised."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import ModuleType

import fl_precode as flp

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text()


def test_the_page_is_made_from_the_docstrings_of_today():
    made = runpy.run_path(str(ROOT / "docs" / "reference" / "generate_api.py"))
    assert made["page"]() == PAGE, "older than the docstrings: run python docs/reference/generate_api.py"


def test_everything_that_is_promised_stands_there():
    for name in flp.__all__:
        shelf = isinstance(getattr(flp, name), ModuleType)
        assert (f"## fl_precode.{name}\n" if shelf else f"### `fl_precode.{name}`") in PAGE
    for name in flp.attacks.__all__:
        assert f"### `fl_precode.attacks.{name}`" in PAGE
    assert "0x" not in PAGE
