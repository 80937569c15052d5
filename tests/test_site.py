"""The documentation site: what checks its links finds what is broken, every page is in its menu, and it builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fl_precode as flp
from website.check import problems

ROOT = Path(__file__).resolve().parents[1]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def in_menu(part):
    """Pages of a part of the menu."""
    if isinstance(part, str):
        return [part]
    return [page for one in (part if isinstance(part, list) else part.values()) for page in in_menu(one)]


def clicks(part, page):
    """How many entries of the menu lead to a page."""
    if isinstance(part, list):
        return min((clicks(one, page) for one in part), default=99)
    if isinstance(part, dict):
        return min((clicks(one, page) + (0 if isinstance(one, str) else 1) for one in part.values()), default=99)
    return 1 if part == page else 99


def test_every_page_is_in_the_menu_and_once():
    pages = in_menu(CONFIG["nav"])
    assert len(set(pages)) == len(pages)
    here = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert here <= set(pages)
    pytest.importorskip("mkdocs", reason="pages from elsewhere are named by a hook of MkDocs, of the extra docs")
    from website.pages import ELSEWHERE, NOTEBOOKS

    elsewhere = {page for page in ELSEWHERE.values() if page.endswith(".md")} | {f"{name}.md" for name in NOTEBOOKS}
    assert set(pages) == here | elsewhere
    assert all((ROOT / source).exists() for source in ELSEWHERE)


def test_an_app_of_ones_own_is_audited_after_three_clicks_at_most():
    assert clicks(CONFIG["nav"], "how-to/audit-my-app.md") <= 3
    assert "](how-to/audit-my-app.md)" in (ROOT / "docs/index.md").read_text(), "one click from the first page"


def test_nothing_is_loaded_from_elsewhere_by_the_theme():
    assert CONFIG["theme"]["font"] is False
    assert CONFIG["strict"] is True
    assert not re.search(r"https?://", (ROOT / "mkdocs.yml").read_text())


def test_what_is_broken_is_found(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/index.html").write_text('<h1 id="there">x</h1><a href="../page.html#here">back</a>')
    page = '<p id="here"></p><a href="other/#there">a</a><a href="#here">b</a><a href="https://flower.ai">c</a>'
    (tmp_path / "page.html").write_text(page)
    assert problems(tmp_path) == []
    (tmp_path / "page.html").write_text(
        page + '<a href="gone.html">d</a><a href="other/#gone">e</a><img src="gone.png">'
        '<script src="https://example.org/x.js"></script><link href="//example.org/x.css">'
    )
    assert problems(tmp_path) == [
        "page.html loads https://example.org/x.js from the network",
        "page.html loads //example.org/x.css from the network",
        "page.html: gone.html does not exist",
        "page.html: other/#gone has no such anchor",
        "page.html: gone.png does not exist",
    ]


@pytest.mark.slow
def test_the_site_builds_and_has_every_promised_name(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the site is built with the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert problems(tmp_path / "site") == []
    text = "".join(path.read_text() for path in (tmp_path / "site/reference/api").glob("*.html"))
    for name in flp.attacks.__all__:
        assert f'id="fl_precode.attacks.{name}"' in text
    for name in set(flp.__all__) - {path.stem for path in (ROOT / "docs/reference/api").glob("*.md")}:
        assert f'id="fl_precode.{name}"' in text, name
