"""The examples on the page of the public API run, in their order."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import fl_precode

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"


def test_the_examples_run():
    # The closing fence of a block would be taken for output.
    text = PAGE.read_text().replace("```", "")
    examples = doctest.DocTestParser().get_doctest(text, {}, "api.md", str(PAGE), 0)
    assert len(examples.examples) > 30
    assert doctest.DocTestRunner().run(examples).failed == 0


def test_what_the_package_exports_is_on_the_page():
    text = PAGE.read_text()
    named = {name for name in fl_precode.__all__ if re.search(rf"\b{name}\b", text)}
    assert {"extend", "extend_conv", "extend_dropout", "track_kl", "Observation", "Protocol"} <= named
