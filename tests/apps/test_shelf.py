"""Nine of Flower's own example apps, from a checkout, each with the README's lines: run, audited, judged."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.apps.added_lines import Added, Moved, NotFound, add_lines, move_names
from tests.apps.shelf import SHELF
from tests.apps.shelf_run import row_of

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "FLOWER_EXAMPLES"


@pytest.fixture
def checkout():
    """Flower's examples, where somebody says where they are."""
    named = os.environ.get(VARIABLE, "")
    if not Path(named or "-").is_dir():
        pytest.skip(f"{VARIABLE} names no folder; expected the examples folder of a checkout of Flower's repository")
    return Path(named)


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.realdata
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("app", SHELF, ids=lambda app: app.name)
def test_an_app_of_flowers(app, checkout, shared_data, tmp_path):
    missing = [name for name in app.needs if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{app.name} needs {', '.join(missing)}, which this environment does not have")
    row = row_of(app, checkout, shared_data, tmp_path / "out")
    assert row.exit_code == (3 if app.says else 0), row
    assert app.says in row.said, row
    if not app.says:
        assert row.attacks, row
        assert row.truth, row
        assert row.verdict, row


SERVER = """from flwr.serverapp import ServerApp

def main():
    strategy = FedAvg()
    if strategy:
        result = strategy.start(
            grid=grid,
        )
"""


def test_lines_stand_where_they_are_put_with_its_indentation(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    lines = (
        Added(file="server.py", line="import a", before="from flwr"),
        Added(file="server.py", line="strategy = b(strategy)", before="result = strategy.start("),
        Added(file="server.py", line="strategy.c()", after="strategy = FedAvg"),
        Added(file="server.py", line="d = 1"),
    )
    assert add_lines(tmp_path, lines) == 4
    changed = SERVER.replace("from flwr.serv", "import a\nfrom flwr.serv")
    changed = changed.replace("        result =", "        strategy = b(strategy)\n        result =")
    changed = changed.replace("FedAvg()\n", "FedAvg()\n    strategy.c()\n") + "d = 1\n"
    assert (tmp_path / "server.py").read_text() == changed


@pytest.mark.parametrize("added", [Added(file="no.py", line="x"), Added(file="a.py", line="x", before="nowhere")])
def test_another_app_is_not_changed(tmp_path, added):
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(NotFound, match="another app"):
        add_lines(tmp_path, [added])
    with pytest.raises(NotFound, match="another app"):
        move_names(tmp_path, [Moved(file="a.py", old="flwr.old", new="flwr.new")])
    assert (tmp_path / "a.py").read_text() == "x = 1\n"


def test_at_most_four_lines_for_any_app():
    assert len(SHELF) == 9
    assert all(len(app.lines) <= 4 and len(app.moved) <= 1 for app in SHELF)


def test_the_page_has_every_app():
    rows = json.loads((ROOT / "docs/results/apps.json").read_text())
    assert {one["app"] for one in rows} == {app.name for app in SHELF}
