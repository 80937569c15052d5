"""What defences in the model cost in accuracy under FedAvg: real federations, several seeds, IID and skewed clients.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/accuracy.py --out accuracy.json --table accuracy.md

Images of ../shared/data: CIFAR-10 (4,000 training and 1,000 test images) and RetinaMNIST (all). Every run is a
`flwr run`; what the JSON file already holds is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deploy.simulation.launch import SimulationRuntime
from fl_precode.federation.config import Settings

SHARED = Path(__file__).resolve().parents[1] / "../shared/data"


def write_sets(folder: Path) -> dict[str, str]:
    """The image sets as .npz files of the product's own form; name to data set spec."""
    with np.load(SHARED / "cifar10/cifar10_lossless_subset.npz") as arrays:
        cifar = {
            "images": arrays["train_images"][:4000],
            "labels": arrays["train_labels"][:4000],
            "test_images": arrays["test_images"][:1000],
            "test_labels": arrays["test_labels"][:1000],
        }
    with np.load(SHARED / "medmnist/retinamnist.npz") as arrays:
        retina = {
            "images": arrays["train_images"],
            "labels": arrays["train_labels"].squeeze(),
            "test_images": arrays["test_images"],
            "test_labels": arrays["test_labels"].squeeze(),
        }
    sets = {"CIFAR-10 (4,000)": ("cifar", cifar), "RetinaMNIST": ("retina", retina)}
    for name, arrays in sets.values():
        np.savez(folder / f"{name}.npz", **arrays)
    return {title: f"npz:{folder / name}.npz" for title, (name, _) in sets.items()}


def run(runtime: SimulationRuntime, settings: Settings) -> dict[str, Any]:
    """Accuracy on the test images after each round."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = runtime.run(Settings(**{**vars(settings), "output_dir": folder}))
        if not outcome.completed:
            return {"failed": outcome.reason, "seconds": outcome.seconds}
        result = json.loads((Path(folder) / "result.json").read_text())
    curve = [one["accuracy"] for one in result["rounds"]]
    return {"accuracy": curve, "seconds": outcome.seconds, "parameters": result["parameters"]}


def write_table(cells: dict[str, Any]) -> str:
    """Markdown: final and best accuracy, mean and range over the seeds."""
    lines = [
        "| images | clients | defence | final accuracy, mean (least to most) | best accuracy | runs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, ...], list[list[float]]] = {}
    for key, cell in cells.items():
        groups.setdefault(tuple(key.split(" | ")[:-1]), []).append(cell.get("accuracy", []))
    for group, curves in groups.items():
        ended = [curve for curve in curves if curve]
        shown = [spread([pick(curve) for curve in ended]) if ended else "diverged" for pick in (last, max)]
        runs = str(len(curves)) + (f", {len(curves) - len(ended)} diverged" if len(ended) < len(curves) else "")
        lines.append(f"| {' | '.join(group)} | {shown[0]} | {shown[1]} | {runs} |")
    return "\n".join(lines) + "\n"


def last(curve: list[float]) -> float:
    return curve[-1]


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet:activation=relu")
    parser.add_argument("--defences", nargs="+", default=["none", "precode", "cvb"])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.001)
    parser.add_argument("--table", type=Path, help="markdown file")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; taken up where it ends")
    options = parser.parse_args()

    cells: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder, SimulationRuntime() as runtime:
        sets = write_sets(Path(folder))
        # Seeds last, so that a run that was stopped has all settings for the first seeds.
        for seed, title, partition, defence in itertools.product(
            range(options.seeds), sets, ("iid", "dirichlet"), options.defences
        ):
            key = f"{title} | {'IID' if partition == 'iid' else 'Dirichlet 0.5'} | {defence} | seed {seed}"
            if key in cells:
                continue
            settings = Settings(
                model=options.model,
                defence=defence,
                dataset=sets[title],
                partition=partition,
                num_clients=options.clients,
                num_server_rounds=options.rounds,
                protocol="fedavg",
                local_epochs=1,
                batch_size=64,
                learning_rate=options.learning_rate,
                local_optimiser="adam",
                seed=seed,
            )
            cells[key] = run(runtime, settings)
            options.out.write_text(json.dumps(cells, indent=1))
            print(
                f"{key}: {cells[key].get('accuracy', ['failed'])[-1]}, {cells[key]['seconds']:.0f} s", file=sys.stderr
            )
    table = write_table(dict(sorted(cells.items())))
    print(table)
    if options.table is not None:
        options.table.write_text(table)


if __name__ == "__main__":
    main()
