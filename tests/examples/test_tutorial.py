"""The notebooks: short, every step explained, and what they say comes out when they run from top to bottom."""

from __future__ import annotations

import json
import re
import time

import pytest

from attacker.attacks.registry import build_attack
from tests.examples.readme_commands import ROOT

FOLDER = ROOT / "docs" / "tutorials"
NOTEBOOKS = pytest.mark.parametrize(
    ("name", "headings", "pictures"), [("tutorial", 8, 5), ("transformer", 6, 3)], ids=["tutorial", "transformer"]
)


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


def run(name, folder, monkeypatch):
    """Run a notebook from top to bottom, deprecated calls being errors; returns what its cells print."""
    nbformat = pytest.importorskip("nbformat", reason="nbclient is a development dependency")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is a development dependency")
    pytest.importorskip("ipykernel", reason="ipykernel is a development dependency")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONWARNINGS", "error::DeprecationWarning:__main__,error::FutureWarning:__main__")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    started = time.monotonic()
    client = nbclient.NotebookClient(
        notebook, timeout=1500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
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
    assert min(plain) > 0.9, "four updates, four photographs"
    assert max(stopped) < 0.2, "noise"
    assert min(adaptive) > 0.6, "the photographs are back"
    assert printed.count("is not known. The attacks ran") == 2
    assert "LEAKS" in printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_audit_of_a_vision_transformer_runs_from_top_to_bottom(tmp_path, monkeypatch):
    printed = run("transformer", tmp_path, monkeypatch)
    alone, together = (
        [int(value) for value in line.split(", ")] for line in re.findall(r"PSNR in dB: \[(.*)\]", printed)
    )
    assert min(alone) > 50, "three updates, three photographs"
    assert len(alone) == 3
    assert min(together) > 50, "one update, two photographs"
    assert len(together) == 2
    assert "PRECODE does not stop the leak" in printed
    assert "2 of 2 images were reconstructed by activation span" in printed
