"""The pages of the public API: every public module has one, and every promised name has a docstring for it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import fl_precode as flp

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference" / "api"
SHELVES = sorted(name for name in flp.__all__ if isinstance(getattr(flp, name), ModuleType))


def test_every_public_module_has_a_page_and_no_other():
    shown = sorted(re.search(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)[1] for page in PAGES.glob("*.md"))
    assert shown == sorted(["fl_precode", *(f"fl_precode.{name}" for name in SHELVES)])
    overview = PAGES.with_suffix(".md").read_text()
    assert all(f"[`{name}`](api/{name.removeprefix('fl_precode.')}.md)" in overview for name in shown)


@pytest.mark.parametrize("module", ["fl_precode", *(f"fl_precode.{name}" for name in SHELVES)])
def test_every_promised_function_and_class_says_what_it_is(module):
    found = import_module(module)
    for name in found.__all__:
        promised = getattr(found, name)
        if callable(promised):
            assert (promised.__doc__ or "").strip(), f"{module}.{name}"
