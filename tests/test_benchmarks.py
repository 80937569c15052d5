"""The benchmark programs run; their figures are for people, and no test judges a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def run(program, *arguments, out):
    command = [sys.executable, f"benchmarks/{program}", *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
def test_speed(tmp_path):
    report = run(
        "speed.py", "--models", "lenet", "--candidates", "1", "2", "--iterations", "4", "--repeats", "1",
        "--processes", "2", out=tmp_path / "speed.json",
    )  # fmt: skip
    rows = {row["name"]: row for row in report["models"]["lenet"]}
    assert set(rows) == {"plain loop", "1 candidate", "2 restarts", "2 victims", "2 victims, 2 processes"}
    assert report["base"] == "plain loop"
    # The same start, the same steps: our engine takes the path of the plain loop.
    assert rows["1 candidate"]["psnr"] == pytest.approx(rows["plain loop"]["psnr"], abs=0.05)
    # The same victims from other starts, one in each process.
    alone, divided = (rows[f"2 victims{ending}"] for ending in ("", ", 2 processes"))
    assert divided["psnr"] == pytest.approx(alone["psnr"], abs=3)
    assert all(row["whole"]["median"] > 0 and row["whole_cpu"]["median"] > 0 for row in rows.values())

    pytest.importorskip("matplotlib", reason="the picture of the speeds needs matplotlib, a development dependency")
    from benchmarks.plots import plot_speed

    report["models"]["lenet"][-1].update(cpu=None, wall=None, left_out="too long")
    plot_speed(report, tmp_path / "speed.png")
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.width > 300


def test_memory(tmp_path):
    (row,) = run(
        "memory.py", "--models", "lenet", "--candidates", "2", "--budgets", "0.25", out=tmp_path / "memory.json"
    )["rows"]
    assert row["peak_mib"] > row["beyond_start_mib"] > 0
    assert (row["candidates"], row["budget_gib"]) == (2, 0.25)
    assert row["matching_loss"] > 0


@pytest.mark.slow
def test_quality_is_taken_up_where_it_ended(tmp_path):
    out = tmp_path / "quality.json"
    command = ["quality.py", "--groups", "dlg", "batches", "--iterations", "2", "--steps", "1", "--images", "4"]
    first = run(*command, out=out)
    assert len(first["cells"]) == 5
    key = "lenet | untrained | inverting-gradients:iterations=2 | batch 4 | ours | 1 clients"
    (client,) = first["cells"][key]["clients"]
    assert len(client["psnr"]) == len(client["ssim"]) == 4
    first["cells"][key]["clients"] = [{"psnr": [7.0], "ssim": [0.5]}]
    out.write_text(json.dumps(first))
    again = run(*command, "--table", str(tmp_path / "table.md"), out=out)
    assert again["cells"] == first["cells"], "what is there is not run again"
    assert "7.0 dB / 0.50" in (tmp_path / "table.md").read_text()
    more = run(*command, "--starts", "2", out=out)["cells"]
    assert len(more) == 10
    other = key.replace("batch 4", "batch 4 | start 1")
    assert more[other]["clients"][0]["psnr"] != client["psnr"]
    alone = run(*command, "--models", "lenet", out=tmp_path / "alone.json")["cells"]
    assert {name.split(" | ")[0] for name in alone} == {"lenet"}
    assert len(alone) == 2
    with pytest.raises(AssertionError, match="--models mlp: none of these is in --groups deep"):
        run("quality.py", "--groups", "deep", "--models", "mlp", out=tmp_path / "none.json")


@pytest.mark.slow
def test_analytic_is_taken_up_where_it_ended(tmp_path):
    out = tmp_path / "analytic.json"
    command = ["analytic.py", "--images", "1", "--epochs", "0", "--only", "sigmoid uniform"]
    first = run(*command, out=out)["cells"]["sigmoid uniform | 0 | through-bottleneck | 1"]
    assert first["psnr"][0] > 70, "exact up to the rounding of float32, whatever the noise was"
    content = json.loads(out.read_text())
    (key, _) = content["cells"]
    content["cells"][key]["psnr"] = [7.0]
    out.write_text(json.dumps(content))
    again = run(*command, "--table", str(tmp_path / "table.md"), out=out)
    assert again["cells"] == content["cells"], "what is there is not run again"
    assert "| sigmoid uniform | 0 | through-bottleneck | 7.0 (7.0 to 7.0) |" in (tmp_path / "table.md").read_text()


@pytest.mark.slow
def test_reference_figures(tmp_path):
    report = run("reference_figures.py", "--iterations", "3", "--images", "2", out=tmp_path / "figures.json")
    assert report["settings"]["iterations"] == 3
    assert min(report["results"]["precode / first-layer"]["ssim"]) > 0.9999, "one division, whatever the noise was"
    assert len(report["results"]["precode / inverting-gradients"]["ssim"]) == 2


@pytest.mark.slow
def test_federated_averaging(tmp_path):
    report = run(
        "federated_averaging.py", "--models", "lenet", "--images", "2", "--steps", "3", "--cost-steps", "1", "2",
        "--iterations", "4", "--repeats", "1", out=tmp_path / "fedavg.json",
    )  # fmt: skip
    assert {row["attack"] for row in report["attacks"]} == {"one-gradient", "surrogate", "unrolled"}
    assert all(0 < row["matching_loss"] < 2 and row["psnr"] > 0 for row in report["attacks"])
    assert set(report["costs"]["lenet"]["unrolled"]) == {"1", "2"}


@pytest.mark.slow
def test_spear(tmp_path):
    report = run(
        "spear.py", "--models", "mlp", "--sizes", "2", "--batches", "2", "--steps", "0", out=tmp_path / "spear.json"
    )
    (row,) = report["rows"]
    assert (row["batch"], row["batches"], row["exact"], row["labels"]) == (2, 2, 2, 1.0)


@pytest.mark.slow
def test_batch_recovery(tmp_path):
    report = run(
        "batch_recovery.py", "--models", "lenet", "--sizes", "2", "--batches", "1", "--iterations", "2",
        out=tmp_path / "batch.json",
    )  # fmt: skip
    (row,) = report["rows"]
    assert row["feature_error"] < 0.01
    assert row["noise_mse"] < 1e-3
    assert len(row["noise and features"]["psnr"]) == 2


@pytest.mark.slow
def test_leakage_is_taken_up_where_it_ended(tmp_path):
    out = tmp_path / "leakage.jsonl"
    command = [sys.executable, "benchmarks/leakage.py", "--parts", "solver", "--images", "1", "--out", str(out)]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["damping"] for row in rows] == [1e-4, 1e-6]
    assert all(row["cg"] == pytest.approx(row["dense"], rel=1e-2) for row in rows)


@pytest.mark.slow
def test_transformers_are_measured_once(tmp_path):
    out, page = tmp_path / "transformers.json", tmp_path / "page.md"
    page.write_text("<!-- transformers -->\n<!-- end of transformers -->\n")

    def rows(*more):
        program = [sys.executable, "-m", "benchmarks.transformers", "--models", "vit_tiny_16", "--images", "1"]
        done = subprocess.run(
            [*program, "--out", str(out), "--page", str(page), *more], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(out.read_text())["rows"]

    (row,) = rows()
    (image,) = row["each"]
    assert image["psnr"] > 30
    assert image["label"]
    assert "smooth" in image["reason"], "it has fewer numbers a token than patches"
    more = rows("--changes", "none", "noise=1")
    assert more[0] == row, "what is there is not run again"
    assert more[1]["each"][0]["psnr"] < image["psnr"]
    assert "| `vit_tiny_16` | one gradient, noise 1 |" in page.read_text()


def test_accuracy_counts_runs_that_diverged():
    from benchmarks.accuracy import write_table

    cells = {
        "digits | IID | none | seed 0": {"accuracy": [0.2, 0.5]},
        "digits | IID | none | seed 1": {"accuracy": [0.8, 0.7]},
        "digits | IID | cvb | seed 0": {"failed": "not finite"},
    }
    assert write_table(cells).splitlines()[2:] == [
        "| digits | IID | none | 60.0% (50.0% to 70.0%) | 65.0% (50.0% to 80.0%) | 2 |",
        "| digits | IID | cvb | diverged | diverged | 1, 1 diverged |",
    ]


@pytest.mark.slow
def test_cvb_figures(tmp_path):
    report = run(
        "cvb_figures.py", "--images", "1", "--seeds", "1", "--iterations", "3", "--learning-rate", "1", "0.1",
        "--total-variation", "0.1", "1e-4", out=tmp_path / "cvb.json",
    )  # fmt: skip
    rows = {(row["defence"], row["attack"]): row for row in report["rows"]}
    assert len(rows) == 2 * 2 * 7
    assert {attack.partition(":")[0] for _, attack in rows} == {"inverting-gradients", "ignore", "noise-restoring"}
    assert all(-1 < value < 1 for row in rows.values() for value in row["ssim"] + row["ssim_stretched"])
    plain = [row["ssim"][0] for (defence, _), row in rows.items() if defence == "none"]
    assert len(set(plain)) == 4, "step and prior change the image"


@pytest.mark.slow
def test_adaptive_says_how_far_the_noise_was_found(tmp_path):
    text = tmp_path / "adaptive.md"
    cases = [("lenet", "none", "first-layer"), ("mlp", "precode", "noise-restoring:iterations=1")]
    cases += [("mlp", "precode", name) for name in ("first-layer", "noise-recovery:iterations=1")]
    chosen = [word for case in cases for word in ("--case", *case)]
    report = run("adaptive.py", "--images", "2", "--table", str(text), *chosen, out=tmp_path / "adaptive.json")
    assert len(report["rows"]) == 4
    restored, recovered = (report["rows"][place]["noise_mse"] for place in (1, 3))
    assert max(recovered) < 1e-10 < 0.1 < min(restored), "one step of a search finds nothing, the closed form all"
    lines = text.read_text().splitlines()[2:]
    assert lines[0].startswith("| lenet | none | `first-layer` | does not apply | 0 of 2 | – | – |")
    assert lines[2].startswith("| mlp | precode | `first-layer` | 1.00 | 2 of 2 |")


@pytest.mark.slow
def test_batch_statistics(tmp_path):
    command = [
        "batch_statistics.py", "--parts", "search", "spectrum", "--models", "resnet18-1", "--batches", "1",
        "--variants", "both", "only", "--iterations", "2",
    ]  # fmt: skip
    *searches, spectrum = sorted(run(*command, out=tmp_path / "statistics.json")["rows"], key=lambda row: "seen" in row)
    assert {row["case"]["variant"] for row in searches} == {"both", "only"}
    assert all(row["statistics_missed"] > 0 for row in searches)
    assert 0 < spectrum["seen"] <= min(spectrum["numbers"], spectrum["pixels"])


def test_guarantees_put_audits_of_a_filter_together():
    from benchmarks import guarantees
    from benchmarks.filtered_audits import Case, measured

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), np.arange(16, dtype=np.int64) % 10
    case = Case(spec="percentile", model="lenet", batch=8)
    row = measured(case, 0, images, 2, formulas=False)
    assert (row["images"], row["updates"], row["back"], row["guessed"]) == (8, 1, 0, 0)
    assert 0.5 < row["as_it_was"] < 1
    assert row["canaries"]["right"] == row["canaries"]["guesses"] > 0, "without noise each canary is seen"
    two = guarantees._row(case, [row, {**row, "seed": 1, "back": 8}])
    assert (two["images"], two["back"], two["updates"], two["most"]) == (16, 8, 2, None)
    assert two["prior"] == pytest.approx(0.842, abs=0.001), "none of two independent updates"
    table = guarantees.audits_table([two])
    assert "no bound" in table
    assert "**8 of 16**" in table
    assert guarantees._row(Case(spec="svt", model="lenet", batch=8), [row]) is None


def test_the_tables_of_identification_are_those_of_its_figures(tmp_path):
    from benchmarks.identification import defences_table, noise_table

    content = json.loads((ROOT / "docs/results/identification.json").read_text())
    page = (ROOT / "docs/results/identification.md").read_text()
    assert noise_table(content["noise"]) in page
    assert defences_table(content["defences"]) in page
    for row in content["noise"].values():
        low, high = row["first_interval"]
        assert low <= 1 / row["candidates"] <= high
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib, a development dependency")
    from benchmarks.plots import plot_identification

    plot_identification(content, tmp_path / "identification.png")
    with Image.open(tmp_path / "identification.png") as picture:
        assert picture.width > 600


@pytest.mark.slow
def test_recommendations_are_joined(tmp_path):
    sizes = [f"--{name}={value}" for name, value in (
        ("iterations", 2), ("search-rounds", 4), ("search-clients", 2), ("search-seeds", 2), ("search-victims", 2),
        ("judged", 2), ("patient", 2), ("families", 1),
    )]  # fmt: skip
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    common = ["--data", "digits", "--work", str(tmp_path / "work"), *sizes]
    (one,) = run("recommendations.py", "--models", "mlp", *common, out=first)["models"]
    both = run("recommendations.py", "--models", "lenet", "--join", str(first), *common, out=second)["models"]
    assert both[0] == one
    assert [found["model"] for found in both] == ["mlp", "lenet"]
    assert one["trials"][0]["rungs"]
