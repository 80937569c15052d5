"""``fl-precode bench`` measures what it says, and needs neither Flower nor Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from attacker.bench.contenders import PLAIN, Contender, TimedRun, contenders, timed
from attacker.bench.measure import SpeedRow, Spread, enough_iterations, measure
from attacker.bench.problem import make_problem
from attacker.bench.record import as_json
from attacker.cli.main import app
from attacker.leakage.smooth_images import smooth_images
from tests.attacker import tiny

ROOT = Path(__file__).resolve().parents[3]
TINY = ["bench", "--models", "lenet", "--candidates", "1,2", "--iterations", "3", "--repeats", "2"]
BLOCKED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flwr", "ray"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
from attacker.cli.main import app
app()
"""


def test_it_runs_without_flower_and_ray(tmp_path):
    out = tmp_path / "new" / "bench.json"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *TINY, "--device", "cpu", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["settings"]["device"] == "cpu"
    assert record["machine"]["cores"] >= 1
    assert torch.__version__.startswith(record["versions"]["torch"])
    rows = {row["name"]: row for row in record["models"]["lenet"]}
    assert list(rows) == ["plain loop", "1 candidate", "2 restarts", "2 victims"]
    # The same start and the same steps: the engine takes the path of the plain loop.
    assert rows["1 candidate"]["psnr"] == pytest.approx(rows["plain loop"]["psnr"], abs=0.02)
    assert rows["1 candidate"]["matching_loss"] == pytest.approx(rows["plain loop"]["matching_loss"], rel=1e-2)
    assert rows["2 restarts"]["matching_loss"] <= rows["1 candidate"]["matching_loss"] * 1.01
    assert all(row["whole"]["median"] > 0 and row["peak_mib"] > 0 for row in rows.values())
    assert all(name in done.stdout for name in ("lenet", *rows, "PSNR"))


@pytest.mark.parametrize(
    ("arguments", "taught"),
    [
        (["--models", "lenett"], "lenett"),
        (["--candidates", "1,two"], "1,8,32"),
        (["--candidates", "0"], "1,8,32"),
        (["--repeats", "0"], "repeats"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "CUDA")]),
    ],
)
def test_bad_usage_is_taught(arguments, taught):
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert done.exit_code == 2
    assert taught in done.output


def scripted(name: str, seconds: list[float], log: list[str], *, candidates: int = 1, kind: str = "") -> Contender:
    """A contender whose runs take what the script says, in order; its first run is the warm-up."""
    script = iter(seconds)

    def run(iterations: int) -> TimedRun:
        log.append(f"{name} {iterations}")
        wall = next(script)
        return TimedRun(wall=wall, cpu=wall / 2, psnr=20.0 + iterations, matching_loss=0.5)

    return Contender(name=name, kind=kind or name, candidates=candidates, run=run, peak=lambda: 3 * 2**20)


def test_the_difference_of_two_attacks_is_the_steady_state_and_the_rest_set_up():
    log: list[str] = []
    first = scripted("first", [9.0, 3.0, 5.0, 3.0, 6.0], log)
    other = scripted("other", [9.0, 1.5, 2.0, 1.5, 2.0], log, candidates=4)
    rows = measure([first, other], iterations=10, repeats=2, limit=1e9)
    assert log == [
        "first 1", "first 10", "first 20", "other 1", "other 10", "other 20",
        "first 10", "first 20", "other 10", "other 20",
    ]  # fmt: skip
    assert rows[0].wall == Spread(median=250.0, least=200.0, most=300.0)
    assert rows[0].cpu == Spread(median=125.0, least=100.0, most=150.0)
    assert rows[0].whole == Spread(median=275.0, least=250.0, most=300.0)
    assert rows[0].set_up == pytest.approx(0.5)
    assert rows[1].wall == Spread(median=12.5, least=12.5, most=12.5)
    assert rows[1].set_up == pytest.approx(1.0)
    assert rows[1].times_faster(rows[0]) == pytest.approx(20.0)
    assert rows[1].image_iterations_per_second == pytest.approx(80.0)
    assert (rows[0].psnr, rows[0].peak_mib, rows[0].iterations) == (40.0, 3.0, 10)
    shown = as_json(rows, base="first")
    assert [row["times_faster"] for row in shown] == [1.0, pytest.approx(20.0)]
    assert [row["times_faster"] for row in as_json(rows, base="nobody")] == [None, None]


def test_what_would_take_too_long_is_left_out():
    log: list[str] = []
    small = scripted("small", [1.0, 3.0, 5.0], log, kind="restarts")
    # One iteration of one candidate takes 0.2 s, set-up 1 s: 30 iterations of 100 candidates and twice the set-up.
    rows = measure([small, scripted("large", [], log, candidates=100)], iterations=10, repeats=1, limit=600)
    assert rows[1].left_out.startswith("about 602 s")
    assert rows[1].wall is None
    assert rows[1].times_faster(rows[0]) is None
    assert not any(line.startswith("large") for line in log)


def test_a_time_that_drowned_is_no_speed():
    drowned = measure([scripted("x", [1.0, 3.0, 2.0], [])], iterations=1, repeats=1, limit=9)[0]
    assert drowned.image_iterations_per_second is None
    assert drowned.times_faster(drowned) is None
    assert SpeedRow(name="x", kind="x", candidates=1, iterations=1).image_iterations_per_second is None


def test_measurements_need_iterations():
    with pytest.raises(ValueError, match="at least 1 iteration"):
        measure([], iterations=0, repeats=1, limit=1)


def test_enough_iterations_fill_the_time():
    # CPU time, half of the elapsed time here, counts where it is less.
    assert enough_iterations(scripted("x", [1.0, 1.0, 1.4], []), seconds=2.0) == 40
    assert enough_iterations(scripted("x", [1.0, 1.0, 9.0], []), seconds=2.0) == 10


def test_contenders_of_a_small_problem():
    spec = tiny.inputs(channels=3, side=32)
    images, labels = smooth_images(3, spec, seed=1)
    assert images.shape == (3, 3, 32, 32)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert float(images.diff(dim=-1).abs().max()) < 0.2, "no sharp edges"
    assert not torch.equal(images, smooth_images(3, spec, seed=2)[0])
    problem = make_problem("lenet", images, labels, spec, device=torch.device("cpu"))
    assert problem.quality(spec.normalise(images[:2])) > 100
    found = contenders(problem, [3, 1, 3])
    assert [(one.name, one.kind, one.candidates) for one in found] == [
        (PLAIN, PLAIN, 1),
        ("1 candidate", "restarts", 1),
        ("3 restarts", "restarts", 3),
        ("3 victims", "victims", 3),
    ]
    assert found[1].peak is not None
    assert found[3].peak is not None
    assert found[3].peak() > found[1].peak() > 0


def test_cpu_time_is_of_the_process_and_results_come_through():
    result, wall, cpu = timed(lambda: sum(range(10**6)), torch.device("cpu"))
    assert result == 499999500000
    assert wall > 0
    assert cpu > 0
