"""The three lines of a verdict where no image is reconstructed: ResNet18 on chest X-rays, labels disclosed or not.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.label_disclosure --tapes FOLDER \\
        --out docs/results/label-disclosure.json

Makes a tape of each case with the reference client's own code and audits it by the command line. The JSON file has what
was measured of labels, the lines, the command and the machine; ``--page`` writes the table into a page.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attacker.audit.execution.machine import this_machine
from attacker.wording import interval, percent
from benchmarks.page_tables import write_between
from benchmarks.simulated_tapes import simulate
from fl_precode.federation.config import Settings

ROOT: Final = Path(__file__).resolve().parents[1]
XRAYS: Final = (ROOT / "../shared/data/medmnist/pneumoniamnist.npz").resolve()
COMMAND: Final = (sys.executable, "-c", "from fl_precode.cli import main; main()", "audit")
SHARED: Final[Mapping[str, Any]] = {
    "model": "benchmarks.simulated_models:residual",
    "dataset": f"npz:{XRAYS}",
    "protocol": "fedavg",
    "batch_size": 8,
    "num_clients": 8,
    "num_server_rounds": 1,
    "device": "cpu",
}
CASES: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "step": ("one step of 8", {"local_steps": 1}),
    "noise": ("one step of 8, noise of 0.01", {"local_steps": 1, "defence": "noise:std=0.01"}),
    "epoch": ("one epoch of 588 in steps of 8", {"local_epochs": 1}),
}
"""By short name: the words of the table, and the settings besides those that all share."""


def measured(name: str, tapes: Path, budget: str, seed: int) -> tuple[dict[str, Any], list[str]]:
    """One case: its tape, where it is not there, and its audit; and what the command said at its end."""
    words, own = CASES[name]
    folder = tapes.absolute() / f"{name}-{seed}"
    if not (folder / "evaluation.json").exists():  # written last
        shutil.rmtree(folder, ignore_errors=True)
        simulate(folder, Settings(**{**SHARED, **own, "seed": seed}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as place:
        arguments = [str(folder / "tape"), "--out", f"{place}/audit", "--victims", "8", "--budget", budget]
        began = time.monotonic()
        ended = subprocess.run([*COMMAND, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - began
        if ended.returncode not in (0, 3):  # 3: no image could be attacked, which is a result
            raise RuntimeError(f"the audit of {name} ended with {ended.returncode}: {ended.stdout}{ended.stderr}")
        record = json.loads(Path(place, "audit", "audit.json").read_bytes())
    row = {
        "case": name,
        "words": words,
        "budget": budget,
        "seed": seed,
        "seconds": round(seconds, 1),
        "exit": ended.returncode,
        "labels": record["label_disclosures"],
        "verdict": record["verdicts"][0],
        "seeds": record["seeds"],
        "created": record["created"],
    }
    return row, ended.stdout.splitlines()[-24:]


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    lines = [
        "| update of a client | images reconstructed | labels | labels right | by class frequencies | "
        "updates all right | 95 % interval | best guess | p |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        by_subject = {line["subject"]: line for line in row["verdict"]["lines"]}
        images, labels = by_subject["images"], by_subject["labels"]
        back = f"{images['seen']} of {images['cases']}" if images["cases"] else images["state"]
        (found,) = row["labels"][:1]
        cells = [row["words"], back, labels["state"]]
        if found["compared"]:
            cells += [
                f"{found['right']} of {found['images']}",
                f"{found['guess_right']} of {found['images']}",
                f"{found['exact']} of {found['compared']}",
                interval(*found["interval"]),
                percent(found["guess"]),
                f"{found['p_value']:.1g}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tapes", type=Path, required=True, help="folder that keeps the tapes")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="these cases")
    parser.add_argument(
        "--budget", default="60s", help="of each audit; where it is short, labels of fewer updates are read"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the federations")
    parser.add_argument("--page", type=Path, help="page that gets the table")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    content = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    content["machine"] = this_machine().model_dump()
    for name in options.only:
        content["rows"] = [row for row in content["rows"] if row["case"] != name]
        row, said = measured(name, options.tapes, options.budget, options.seed)
        content["rows"].append(row)
        content["rows"].sort(key=lambda row: list(CASES).index(row["case"]))
        options.out.write_text(json.dumps(content, indent=1) + "\n")
        print("\n".join(said), flush=True)
    print(table(content["rows"]))
    if options.page:
        write_between(options.page, "label disclosure", table(content["rows"]))


if __name__ == "__main__":
    main()
