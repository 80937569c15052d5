"""docs/results/scale.md shows what docs/results/scale.json holds; the benchmark behind both runs real federations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale_tables import CostModel, fitted, tables

ROOT = Path(__file__).resolve().parents[1]


def test_the_tables_of_the_page_are_made_from_the_file():
    report = json.loads((ROOT / "docs" / "results" / "scale.json").read_text())
    page = (ROOT / "docs" / "results" / "scale.md").read_text()
    for name, table in tables(report).items():
        assert f"<!-- {name} -->\n{table}\n<!-- end of {name} -->" in page, f"{name}: run --table --page"


def test_listening_changed_no_model_and_every_update_is_counted():
    rows = json.loads((ROOT / "docs" / "results" / "scale.json").read_text())["rows"]
    listened = [row for row in rows if row["listening"] != "off"]
    assert {row["clients"] for row in listened} >= {100, 1_000}
    for row in listened:
        assert row["seen"] == row["clients"] * len(row["rounds"]) == sum(row["usable"])
        assert row["lost"] == 0
        same = [one for one in rows if (one["model"], one["clients"]) == (row["model"], row["clients"])]
        models = [one["models"] for one in same]
        shared = min(map(len, models))
        assert len({tuple(one[:shared]) for one in models}) == 1


def test_the_cost_model_is_linear_in_updates_and_memory_is_flowers():
    model = CostModel(payload=1_000, overhead=200.0, seconds=0.01, copies=2.0, choosing=0.5)
    assert model.tape_bytes(10, 1_000) == 1_000 + 10 * 1_200
    assert model.memory(100, 1_000) == 200_000


def test_the_fit_finds_what_the_runs_were_made_with():
    payload, copies = 1_000, 3
    rows = [
        {
            "model": "lenet", "clients": clients, "listening": listening, "rounds": [1.0, 1.0],
            "payload_bytes": payload, "rss_bytes_after_round": [50_000],
            "peak_rss_bytes": [0, 50_000 + copies * payload * clients], "kept": 2 * clients,
            "tape_bytes": payload * (2 * clients + 2) + 70 * 2 * clients, "seconds_of_an_update": 0.01,
        }
        for clients in (100, 200)
        for listening in ("off", "all")
    ]  # fmt: skip
    alone = [
        {"payload_bytes": size, "clients": 50, "listening": listening, "seconds": 1.0 + 50 * more}
        for size in (1_000, 9_000)
        for listening, more in (("off", 0.0), ("all", 0.01 + 1e-6 * (size - 1_000)))
    ]
    model = fitted({"rows": rows, "choosing": {"seconds": 0.5}, "server_alone": alone})
    assert (model.overhead, model.seconds, model.copies) == pytest.approx((70, 0.01, copies))
    assert model.writing(10, 1_000) == pytest.approx(0.1)
    assert model.writing(10, 5_000) == pytest.approx(10 * (0.01 + 0.004))
    assert fitted({"rows": rows, "choosing": {"seconds": 0.5}}).writing(10, 5_000) is None


@pytest.mark.slow
@pytest.mark.federation
def test_the_benchmark_runs(tmp_path):
    out = tmp_path / "scale.json"
    command = [sys.executable, "-m", "benchmarks.thousand_clients", "--out", str(out), "--smallest", "--rounds", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    off, sampled = json.loads(out.read_text())["rows"]
    assert off["models"] == sampled["models"]
    assert (sampled["seen"], sampled["kept"], sampled["lost"]) == (8, 4, 0)
    assert len(sampled["peak_rss_bytes"]) == 3


@pytest.mark.slow
def test_a_round_of_a_server_alone_is_measured():
    command = [sys.executable, "-m", "benchmarks.large_rounds", "--one", "lenet", "40", "reservoir:n=5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert (row["clients"], row["kept"]) == (40, 5)
    assert row["seconds"] > 0
