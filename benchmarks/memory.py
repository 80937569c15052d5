"""Memory against the number of candidates: the peak of a fresh process, with the default budget and a small one.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/memory.py --out memory.json

Candidates are restarts of one victim; the attack does one step. "beyond the start" is what the attack adds to Python,
torch, the model and the observation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MIB = 2**20


def resident(field: str) -> int:
    """Bytes of this process by Linux: VmRSS now, VmHWM at the worst since the program was started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"expected {field} in /proc/self/status; this measurement needs Linux")


def attack(model: str, candidates: int, budget: float) -> dict[str, Any]:
    """In the fresh process: one attack, and what it took."""
    import torch

    from attacker.bench.problem import make_problem
    from fl_precode.attacks import GradientMatching
    from images import first_images

    torch.set_num_threads(1)
    _, images, labels, inputs = first_images(1)
    problem = make_problem(model, images, labels, inputs, device=torch.device("cpu"))
    before, began = resident("VmRSS"), time.process_time()
    (found,) = GradientMatching().with_options(iterations=1, restarts=candidates, memory=budget)(
        problem.victim, problem.observations, generator=torch.Generator().manual_seed(0), labels=[labels]
    )
    peak = resident("VmHWM")
    return {
        "peak_mib": peak / MIB,
        "beyond_start_mib": (peak - before) / MIB,
        "cpu_seconds": time.process_time() - began,
        "outcome": str(found.outcome),
        "matching_loss": found.matching_loss,
    }


def fresh(model: str, candidates: int, budget: float) -> dict[str, Any]:
    """`attack` in a process of its own."""
    command = [sys.executable, __file__, "--one", model, str(candidates), str(budget)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{model} with {candidates} candidates failed:\n{done.stderr}")
    row = {"model": model, "candidates": candidates, "budget_gib": budget, **json.loads(done.stdout)}
    print(
        f"{model:18} {candidates:4} candidates, budget {f'{budget:g} GiB' if budget else 'default':8}  peak "
        f"{row['peak_mib']:7.0f} MiB, beyond the start {row['beyond_start_mib']:7.0f} MiB, {row['cpu_seconds']:6.1f} s"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet", "mlp", "resnet20:width=4"])
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 8, 32, 128, 512])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.0, 0.25], help="GiB; 0 is the default of 2")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "CANDIDATES", "BUDGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        model, candidates, budget = options.one
        print(json.dumps(attack(model, int(candidates), float(budget))))
        return
    rows: list[dict[str, Any]] = []
    for model in options.models:
        for budget in options.budgets:
            for candidates in options.candidates:
                rows.append(fresh(model, candidates, budget))
                if options.out is not None:
                    options.out.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
