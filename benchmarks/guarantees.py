"""What filters at the settings that are deployed claim, and what their formula gives, as a table and as JSON.

    OMP_NUM_THREADS=1 python benchmarks/guarantees.py --out docs/guarantees.json

Nothing is drawn: the figures follow from the settings and from how many numbers a model's update has. Besides, for
the filters that send numbers as they are, the share that they left so of one client's gradient (one image of --data,
untrained model), because their settings do not say it; --seed is that of the weights, the filter and the image's place.
"""

from __future__ import annotations

import argparse
import logging
import platform
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from typing import Any

import torch

import command_line
from clients.train import defended_gradient
from fl_precode.data.registry import load_data
from fl_precode.defences.registry import gradient_defence, perturbation_generator
from fl_precode.models import build_model
from fl_precode.privacy import Conditions, privacy_statement

logger = logging.getLogger("guarantees")

SPECS = (
    "local-dp:clip=1,sensitivity=1e-4,epsilon=10,delta=1e-5",
    "local-dp:clip=1,sensitivity=1,epsilon=10,delta=1e-5",
    "percentile",
    "svt",
)
"""A hospital platform's settings of Flower's mod, the same with the sensitivity of its clip, NVFlare's defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet", "lenet:activation=relu", "mlp"])
    parser.add_argument("--rounds", type=int, default=100, help="that are composed")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="images behind one update")
    parser.add_argument("--data", default="photos", help="data set of the images")
    options = command_line.parse(parser)
    data = load_data(options.data)
    rows = []
    for spec in SPECS:
        for name in options.models:
            model = build_model(name, data.inputs, seed=options.seed)
            rows.append(claimed(spec, name, sum(p.numel() for p in model.parameters()), options.rounds))
            rows[-1]["left"] = [left(spec, model, data, size, options.seed) for size in options.batches]
            logger.info(table_row(rows[-1]))
    command_line.write_record(
        {
            "measured": date.today().isoformat(), "machine": f"{platform.machine()}, {platform.system()}",
            "versions": {name: version(name) for name in ("dp-accounting", "torch", "numpy")}, "seed": options.seed,
            "rounds": options.rounds, "data": options.data, "rows": rows,
        },
        options,
    )  # fmt: skip


def claimed(spec: str, model: str, numbers: int, rounds: int) -> dict[str, Any]:
    """Claim and formula, for one image and one client, a round and all rounds."""
    said = privacy_statement(spec, Conditions(rounds=rounds, numbers=numbers))
    return {
        "spec": spec, "model": model, "numbers": numbers, "claimed": None if said.claim is None else said.claim.epsilon,
        "holds": said.holds, "why_not": said.why_not, "guarantees": [asdict(one) for one in said.guarantees],
    }  # fmt: skip


def left(spec: str, model: torch.nn.Module, data: Any, size: int, seed: int) -> dict[str, Any]:
    """Of one client's gradient, which share of the numbers that were not zero was sent as it was."""
    images, labels = data.train.batch(range(seed, seed + size))
    batch = data.inputs.normalise(images), labels
    before, _ = defended_gradient(model, batch, None, None)
    after, _ = defended_gradient(model, batch, gradient_defence(spec), perturbation_generator(seed))
    pairs = [(before[name], after[name]) for name in before]
    filled = sum(int((one != 0).sum()) for one, _ in pairs)
    return {
        "batch": size,
        "as_it_was": sum(int(((one == other) & (one != 0)).sum()) for one, other in pairs) / max(1, filled),
        "norm": float(torch.cat([one.flatten() for one, _ in pairs]).norm()),
    }


def table_row(row: dict[str, Any]) -> str:
    """One line of the table in docs/defences.md."""
    by_level = {one["level"]: one for one in row["guarantees"]}
    figures = [
        f"{by_level[level][key]:.3g}" if level in by_level and by_level[level][key] is not None else "none"
        for level in ("client", "image")
        for key in ("a_round", "composed")
    ]
    classical = by_level.get("client", {}).get("classical")
    shares = " / ".join(f"{one['as_it_was']:.0%}" for one in row["left"])
    cells = [
        f"`{row['spec']}`", row["model"], "–" if row["claimed"] is None else f"{row['claimed']:g}",
        "–" if classical is None else f"{classical:,.0f}", *figures, "yes" if row["holds"] else "no", shares,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
