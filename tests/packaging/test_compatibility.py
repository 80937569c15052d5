"""The page on flwr and Python says what was measured; the federation that it was measured with runs here, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.compatibility import FEDERATION, results_of, table, worst_image

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_the_table_of_what_was_measured():
    rows = json.loads((ROOT / "docs" / "results" / "compatibility.json").read_text())
    assert table(rows) in (ROOT / "docs" / "reference" / "compatibility.md").read_text()


def test_the_tiny_federation_is_recorded_and_its_images_are_reconstructed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{FEDERATION.parent}")
    command = [sys.executable, FEDERATION, tmp_path / "out"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    row = json.loads(said.stdout.splitlines()[-1])
    assert (row["updates_by_interceptor"], row["updates_by_grid_with_mod"]) == (4, 4)
    audit = [Path(sys.executable).with_name("fl-precode"), "audit", tmp_path / "out" / "tape"]
    audit += ["--out", tmp_path / "audit", "--attacks", "first-layer", "--no-leakage"]
    assert subprocess.run(audit, cwd=tmp_path, capture_output=True).returncode == 0
    assert worst_image(tmp_path) > 40
    assert all(one["ssim"] > 0.99 for one in results_of(tmp_path)), "the clients recorded what they trained on"
    # The truth is what it says it is: two different images of many greys.
    assert len(np.unique(np.load(tmp_path / "out" / "truth.npy"), axis=0)) == 2
