"""Every number in a table under Results comes from a committed file: each table is made again from it and compared."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.result_tables import RECORDED, RESULTS, marked, read, recorded, tables

TABLES = list(tables())
PAGES = sorted(path for path in RESULTS.glob("*.md") if path.stem != "index")
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


def without_marked(text: str) -> str:
    """A page without code and without what stands between marks."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"<!-- (?!end of )(.*?) -->\n.*?\n<!-- end of \1 -->", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.page}: {table.mark}")
def test_the_page_shows_what_the_file_holds(table):
    shown = marked((RESULTS / f"{table.page}.md").read_text())
    assert shown[table.mark] == table.text(), f"run: python -m benchmarks.result_tables {table.page}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_table_with_a_number_stands_outside_marks(page):
    for table in _TABLE.findall(without_marked(page.read_text())):
        assert not re.search(r"\d", table), table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_mark_is_without_what_makes_it(page):
    assert set(marked(page.read_text())) == {table.mark for table in TABLES if table.page == page.stem}


def test_a_number_outside_marks_is_found():
    text = "| a |\n| --- |\n| 1 |\n"
    assert _TABLE.findall(without_marked(text)) == [text]
    assert _TABLE.findall(without_marked(f"<!-- x -->\n{text}<!-- end of x -->\n")) == []


def test_what_is_recorded_says_when_and_where_it_was_measured():
    files = sorted((RESULTS / "recorded").glob("*.json"))
    assert {table.page for table in TABLES if table.mark.startswith(RECORDED)} == {file.stem for file in files}
    for file in files:
        for name, entry in read(file).items():
            assert re.fullmatch(r"20\d\d-\d\d-\d\d", entry["measured"]), name
            assert entry["machine"], name
            assert recorded(name, {name: entry}).count("\n") >= len(entry["rows"]) + 1


def test_the_index_names_every_page():
    index = (RESULTS / "index.md").read_text()
    assert {page.name for page in PAGES} <= set(re.findall(r"\]\(([\w-]+\.md)", index))


def test_speed_is_the_median_of_all_its_runs():
    runs = json.loads((RESULTS / "speed.json").read_text())["runs"]
    times = sorted(
        entry["times"]
        for run in runs
        for entry in run["entries"]
        if (run["model"], entry["what"]) == ("ResNet20-4", "32 restarts")
    )
    assert len(times) == 13
    row = f"**{times[6]:.3g} ({times[0]:.3g} to {times[-1]:.3g})**"
    assert "| ResNet20-4 | 32 restarts | 13 |" in (page := (RESULTS / "speed.md").read_text())
    assert row in page
