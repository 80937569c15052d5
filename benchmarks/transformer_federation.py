"""A vision transformer of torchvision, trained at 224x224 by Flower's simulation and audited from the command line.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.transformer_federation --work /tmp/vit \
        --out docs/results/transformer-federation.json --page docs/results/transformers.md

``fl-precode run``: two clients with 16 photographs each (those of `benchmarks.transformers`, and mirrored), three
rounds. Then ``plan`` and ``audit --budget 2m`` on its tape, as a user types them, on a terminal: seconds on the wall
and of the processor, the longest time in which nothing was written, the largest memory. A federation that is there
already is not run again. What stands in the file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import resource
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.page_tables import write_between
from benchmarks.transformers import photographs

ROOT: Final = Path(__file__).resolve().parents[1]
PROGRAM: Final = "from fl_precode.cli import main; main()"
SETTINGS: Final = {"num-clients": 2, "num-server-rounds": 3, "batch-size": 1, "learning-rate": 0.05}


def write_photographs(path: Path) -> None:
    """32 photographs in four classes, as ``npz:PATH`` reads them."""
    images = torch.stack(list(photographs(16)))
    images = torch.cat([images, images.flip(-1)])
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.savez(path, images=pixels, labels=np.arange(len(pixels)) % 4)


def watched(*words: str) -> tuple[dict[str, Any], str]:
    """Run ``fl-precode`` on a terminal of its own: what it took, and what it said."""
    terminal, inside = pty.openpty()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = latest = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "110"}
    command = [sys.executable, "-c", PROGRAM, *words]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=inside, stderr=inside, env=environment)
    os.close(inside)
    said, silence = b"", 0.0
    while process.poll() is None or select.select([terminal], [], [], 0)[0]:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # its other end is closed
            break
        now = time.monotonic()
        silence, latest, said = max(silence, now - latest), now, said + part
    process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = {
        "exit_code": process.returncode,
        "wall_seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "longest_silence": round(silence, 1),
        "largest_memory_gb": round(after.ru_maxrss / 1e6, 1),
    }
    return took, re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", said.decode(errors="replace"))


def measured(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One federation, its plan and its audit."""
    folder = options.work / model
    row: dict[str, Any] = {"model": model}
    if not (folder / "result.json").exists():
        images = options.work / "photographs.npz"
        options.work.mkdir(parents=True, exist_ok=True)
        write_photographs(images)
        settings = {
            **SETTINGS, "dataset": f"npz:{images}", "model": f"torchvision.models:{model}(num_classes=4)"
        }  # fmt: skip
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        row["run"], said = watched("run", "--out", str(folder), *words)
        if row["run"]["exit_code"]:
            raise RuntimeError(f"the federation failed: {said[-2000:]}")
    tape, audit = str(folder / "tape"), folder / f"audit-{time.time_ns()}"
    row["plan"], said = watched("plan", tape, "--budget", options.budget)
    listed = [line.split()[0] for line in said.splitlines() if re.match(r"[a-z-]+ +(plain|adaptive) ", line)]
    row["first_in_plan"] = listed[0] if listed else None
    row["audit"], _ = watched("audit", tape, "--budget", options.budget, "--out", str(audit))
    record = json.loads((audit / "audit.json").read_text(encoding="utf-8"))
    row["verdict"] = [one["verdict"] for one in record["verdicts"]]
    row["results"] = [
        {key: one[key] for key in ("attack", "outcome", "psnr", "ssim", "reason_codes")} for one in record["results"]
    ]
    return row


def table(record: dict[str, Any]) -> str:
    """The table of docs/results/transformers.md."""
    lines = [
        f"Measured on {record['measured']} with PyTorch {record['torch']}; other work ran on the two cores.\n",
        "| model | first in the plan | reconstructed, of updates whose patch layer moved | PSNR, dB | verdict "
        "| plan: CPU s, wall s | audit: CPU s, wall s | longest silence, s | memory, GB |",
        "| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        own = [one for one in row["results"] if one["attack"].startswith("patch-embedding")]
        made = [one for one in own if one["psnr"] is not None]
        plan, audit = row["plan"], row["audit"]
        decibels = ", ".join(f"{one['psnr']:.0f}" for one in made)
        lines.append(
            f"| `{row['model']}` | `{row['first_in_plan']}` "
            f"| {sum(one['ssim'] >= 0.6 for one in made)} of {len(made)} ({len(own) - len(made)} had not moved) "
            f"| {decibels} | {', '.join(row['verdict'])} "
            f"| {plan['cpu_seconds']:.0f}, {plan['wall_seconds']:.0f} "
            f"| {audit['cpu_seconds']:.0f}, {audit['wall_seconds']:.0f} "
            f"| {audit['longest_silence']} | {audit['largest_memory_gb']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of federations; 3 GB each")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, or go on with")
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    parser.add_argument("--models", nargs="*", default=["vit_b_32", "vit_b_16"])
    parser.add_argument("--budget", default="2m", help="of plan and audit")
    options = parser.parse_args()
    options.work = options.work.resolve()
    record: dict[str, Any] = {"measured": time.strftime("%Y-%m-%d"), "torch": torch.__version__, "rows": []}
    if options.out.exists():
        record = json.loads(options.out.read_text(encoding="utf-8"))
    for model in options.models:
        if model not in {row["model"] for row in record["rows"]}:
            record["rows"].append(measured(model, options))
            options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.page:
        write_between(options.page, "transformer-federation", table(record))


if __name__ == "__main__":
    main()
