"""The same on a GPU as on the CPU; and, where there is none, on a device that shows tensors in the wrong place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration
from typer.testing import CliRunner

from attacker.attacks import GradientMatching
from attacker.cli.main import app
from attacker.gradients.memory_budget import default_budget, peak_bytes
from tests.attacker import tiny
from tests.attacker.device_cases import CASES, SPEC, elsewhere, federation, moved

ROOT = Path(__file__).resolve().parents[3]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device on this machine")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("case", CASES)
def test_on_cuda_as_on_the_cpu(case):
    CASES[case]("cuda")


@pytest.mark.gpu
@needs_cuda
def test_the_budget_of_a_gpu_is_half_of_it_and_bounds_what_is_allocated():
    device = torch.device("cuda")
    assert default_budget(device) == torch.cuda.mem_get_info(device)[1] // 2
    victim, (seen, _) = federation("convnet", 1)
    victim, seen = moved(victim, "cuda"), elsewhere(seen, "cuda")

    def attack(memory: float) -> int:
        settings = GradientMatching().with_options(iterations=2, restarts=4096, memory=memory)
        generator = torch.Generator().manual_seed(0)
        return peak_bytes(lambda: settings(victim, [seen], generator=generator), device)

    assert attack(0.004) < attack(0.0) / 4


@pytest.mark.gpu
@needs_cuda
def test_bench_on_cuda(tmp_path):
    out = tmp_path / "bench.json"
    done = CliRunner().invoke(
        app, f"bench --device cuda --models lenet --candidates 1,4 --iterations 4 --repeats 1 --out {out}".split()
    )
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    assert record["settings"]["device"] == "cuda"
    assert record["machine"]["gpus"]
    plain, one, *_ = record["models"]["lenet"]
    assert one["psnr"] == pytest.approx(plain["psnr"], abs=0.1)
    assert all(row["peak_mib"] > 0 for row in record["models"]["lenet"])


@pytest.mark.slow  # the cases marked gpu are the same on a real one; straw stands in where there is none
def test_nothing_lands_on_the_wrong_device():
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices written in Python (2.9 and newer have)")
    # A process of its own: a device cannot be taken back.
    done = subprocess.run(
        [sys.executable, "-m", "tests.attacker.run_on_straw"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{len(CASES)} cases, failed: []" in done.stdout


def test_a_default_device_moves_nothing():
    victim, seen = federation("mlp with a bottleneck", 1)
    attack = GradientMatching().with_options(iterations=3, restarts=2)

    def found() -> torch.Tensor:
        (one, _) = attack(victim, seen, generator=torch.Generator().manual_seed(0))
        assert one.inputs is not None
        return one.inputs

    expected = found()
    with torch.device("meta"):  # what does not say where it belongs has no values there
        assert torch.equal(found(), expected)
    assert expected.shape == (1, *SPEC.shape)
    assert tiny.inputs() == SPEC
