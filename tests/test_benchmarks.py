"""The benchmark programs run; their figures are for people, and no test judges a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(program, *arguments, out):
    command = [sys.executable, f"benchmarks/{program}", *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_speed(tmp_path):
    report = run(
        "speed.py", "--models", "lenet", "--candidates", "1", "2", "--iterations", "4", "--repeats", "1",
        out=tmp_path / "speed.json",
    )  # fmt: skip
    rows = report["models"]["lenet"]
    assert set(rows) == {"plain loop", "ours, 1 restarts", "ours, 2 restarts", "ours, 2 victims"}
    assert rows["plain loop"]["times_faster"] == 1
    # The same start, the same steps: our engine takes the path of the plain loop.
    assert rows["ours, 1 restarts"]["psnr"] == pytest.approx(rows["plain loop"]["psnr"], abs=0.05)
    assert all(row["milliseconds"] > 0 for row in rows.values())


def test_reference_figures(tmp_path):
    report = run("reference_figures.py", "--iterations", "3", "--images", "2", out=tmp_path / "figures.json")
    assert report["settings"]["iterations"] == 3
    assert min(report["results"]["precode / first-layer"]["ssim"]) > 0.9999, "one division, whatever the noise was"
    assert len(report["results"]["precode / inverting-gradients"]["ssim"]) == 2


def test_federated_averaging(tmp_path):
    report = run(
        "federated_averaging.py", "--models", "lenet", "--images", "2", "--steps", "3", "--cost-steps", "1", "2",
        "--iterations", "4", "--repeats", "1", out=tmp_path / "fedavg.json",
    )  # fmt: skip
    assert {row["attack"] for row in report["attacks"]} == {"one-gradient", "surrogate", "unrolled"}
    assert all(0 < row["matching_loss"] < 2 and row["psnr"] > 0 for row in report["attacks"])
    assert set(report["costs"]["lenet"]["unrolled"]) == {"1", "2"}
