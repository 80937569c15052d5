"""The tutorial: short, every step explained, and what it says comes out when it runs from top to bottom."""

from __future__ import annotations

import json
import re
import time

import pytest

from attacker.attacks.registry import build_attack
from tests.examples.readme_commands import ROOT

NOTEBOOK = ROOT / "docs" / "tutorials" / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


def test_it_is_small_and_every_step_is_explained():
    assert NOTEBOOK.stat().st_size < 400_000, "outputs are kept, and small"
    kinds = [cell["cell_type"] for cell in CELLS]
    assert kinds[0] == "markdown"
    for first, second, third in zip(kinds, kinds[1:], kinds[2:], strict=False):
        assert "markdown" in (first, second, third), "at most two cells in a row without a word"
    headings = [line for cell in CELLS if cell["cell_type"] == "markdown" for line in cell["source"] if line[0] == "#"]
    assert len(headings) == 8


def test_its_links_and_attacks_exist():
    for cell in CELLS:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", source(cell)):
                assert (NOTEBOOK.parent / target).exists(), target
    code = "\n".join(source(cell) for cell in CELLS if cell["cell_type"] == "code")
    for spec in set(re.findall(r'"([a-z-]+:iterations=[^"]+)"', code)):
        build_attack(spec)


def test_outputs_are_those_of_the_code_and_free_of_errors_and_of_places_on_a_machine():
    for cell in CELLS:
        for output in cell.get("outputs", []):
            assert output["output_type"] in ("stream", "display_data"), output
            assert output.get("name") != "stderr", output
            assert "/tmp" not in "".join(output.get("text", "")), output
    assert sum("image/png" in one.get("data", {}) for cell in CELLS for one in cell.get("outputs", [])) == 5


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(1800)
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is a development dependency")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is a development dependency")
    pytest.importorskip("ipykernel", reason="ipykernel is a development dependency")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    started = time.monotonic()
    client = nbclient.NotebookClient(
        notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    out = ROOT / "outputs"
    out.mkdir(exist_ok=True)
    (out / "tutorial.json").write_text(json.dumps({"seconds": round(time.monotonic() - started, 1)}))
    printed = "\n".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    plain, stopped, adaptive = (
        [float(value) for value in line.split(", ")] for line in re.findall(r"similarity \(SSIM\): \[(.*)\]", printed)
    )
    assert min(plain) > 0.9, "four updates, four photographs"
    assert max(stopped) < 0.2, "noise"
    assert min(adaptive) > 0.6, "the photographs are back"
    assert printed.count("is not known. The attacks ran") == 2
    assert "LEAKS" in printed
