"""The notebooks: short, every step explained, and what they say comes out when they run from top to bottom."""

from __future__ import annotations

import json
import re
import time
import uuid
from contextlib import nullcontext, suppress

import pytest

from attacker.attacks.registry import build_attack
from deploy.simulation.processes import TOKEN_VARIABLE, end_processes, launched_processes
from tests.examples.readme_commands import ROOT

FOLDER = ROOT / "docs" / "tutorials"
NOTEBOOKS = pytest.mark.parametrize(
    ("name", "headings", "pictures"), [("tutorial", 8, 5), ("transformer", 6, 3)], ids=["tutorial", "transformer"]
)

# Later ones go before: everything is printed, and a cell that makes a deprecated call fails.
WARNINGS = "default::DeprecationWarning,error::DeprecationWarning:__main__,error::FutureWarning:__main__"
# By Python for our files and the notebook's, and by Flower's own words for the calls of its users.
DEPRECATED = re.compile(r"(/fl_precode/|/attacker/|/tutorial-).*DeprecationWarning|DEPRECATED FEATURE")


def cells_of(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


@NOTEBOOKS
def test_it_is_small_and_every_step_is_explained(name, headings, pictures):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 600_000, "outputs are kept, and small"
    cells = cells_of(name)
    kinds = [cell["cell_type"] for cell in cells]
    assert kinds[0] == "markdown"
    for first, second, third in zip(kinds, kinds[1:], kinds[2:], strict=False):
        assert "markdown" in (first, second, third), "at most two cells in a row without a word"
    lines = [line for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]]
    assert sum(line[0] == "#" for line in lines) == headings


@NOTEBOOKS
def test_its_links_and_attacks_exist(name, headings, pictures):
    cells = cells_of(name)
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", source(cell)):
                assert (FOLDER / target).exists(), target
    code = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "code")
    for spec in set(re.findall(r'"([a-z-]+:iterations=[^"]+)"', code)):
        build_attack(spec)


@NOTEBOOKS
def test_outputs_are_those_of_the_code_and_free_of_errors_and_of_places_on_a_machine(name, headings, pictures):
    cells = cells_of(name)
    for cell in cells:
        for output in cell.get("outputs", []):
            assert output["output_type"] in ("stream", "display_data"), output
            assert output.get("name") != "stderr", output
            assert "/tmp" not in "".join(output.get("text", "")), output
    assert sum("image/png" in one.get("data", {}) for cell in cells for one in cell.get("outputs", [])) == pictures


def read(name):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is a development dependency")
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(notebook, folder, monkeypatch, *, fails=False):
    """Run a notebook from top to bottom, deprecated calls being errors; returns the names of what it left running."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is a development dependency")
    pytest.importorskip("ipykernel", reason="ipykernel is a development dependency")
    token = uuid.uuid4().hex
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", WARNINGS)
    client = nbclient.NotebookClient(
        notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    try:
        with suppress(nbclient.exceptions.CellExecutionError) if fails else nullcontext():
            client.execute()
    finally:
        left = [one.name() for one in launched_processes(token, folder)]
        end_processes(token, folder)
    return left


def run(name, folder, monkeypatch):
    """Run a notebook from top to bottom; returns what its cells print."""
    notebook = read(name)
    started = time.monotonic()
    assert execute(notebook, folder, monkeypatch) == []
    out = ROOT / "outputs"
    out.mkdir(exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps({"seconds": round(time.monotonic() - started, 1)}))
    return "\n".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(1800)
def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch):
    printed = run("tutorial", tmp_path, monkeypatch)
    plain, stopped, adaptive = (
        [float(value) for value in line.split(", ")] for line in re.findall(r"similarity \(SSIM\): \[(.*)\]", printed)
    )
    assert min(plain) > 0.7, "four updates, four photographs"
    assert max(stopped) < 0.2, "noise"
    assert min(adaptive) > 0.6, "the photographs are back"
    assert printed.count("whether images were reconstructed is not known") == 2
    assert "LEAKS TO AN ADAPTIVE ATTACKER" in printed
    logs = {file.name: file.read_text() for file in tmp_path.glob("tutorial-*/*.log")}
    assert set(logs) == {"plain.log", "defended.log", "audit.log"}
    lines = "\n".join([printed, *logs.values()]).splitlines()
    assert [line for line in lines if DEPRECATED.search(line)] == []


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(300)
def test_a_tutorial_whose_cell_fails_leaves_no_superlink(tmp_path, monkeypatch):
    notebook = read("tutorial")
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    failing = {**first, "id": "failing", "source": "!flwr ls\n1 / 0"}
    notebook.cells = [first, type(first)(failing)]
    assert execute(notebook, tmp_path, monkeypatch, fails=True) == []
    *printed, error = notebook.cells[1].outputs
    assert "Starting local SuperLink" in "".join(one.text for one in printed)
    assert error.ename == "ZeroDivisionError"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_audit_of_a_vision_transformer_runs_from_top_to_bottom(tmp_path, monkeypatch):
    printed = run("transformer", tmp_path, monkeypatch)
    alone, together = (
        [int(value) for value in line.split(", ")] for line in re.findall(r"PSNR in dB: \[(.*)\]", printed)
    )
    assert min(alone) > 50, "three updates, three photographs"
    assert len(alone) == 3
    assert min(together) > 50, "one update, three photographs"
    assert len(together) == 3
    assert "PRECODE does not stop the leak" in printed
    assert "3 of 3 images were reconstructed by activation span" in printed
