"""What the portfolio reaches against one attack alone, image by image, and what it costs.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/portfolio.py --out portfolio.json

One image for each update, labels recovered by the attacks. PSNR in dB on clamped [0, 1] images, CPU seconds of this
process. The first training images of CIFAR-10 where ../shared/data has them, else of `photos`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacker.simulate import observe
from fl_precode import Observation, Protocol, Victim
from fl_precode.attacks import build_attack
from fl_precode.defences.registry import apply_defence
from fl_precode.metrics import psnr
from fl_precode.models import build_model
from label_recovery import load

logger = logging.getLogger("portfolio")


def sent(victim: Victim, x: Tensor, y: Tensor) -> list[Observation]:
    """The gradients that clients with one image each would send."""
    noise = torch.Generator().manual_seed
    return observe(victim, x, y, batch_size=1, protocol=Protocol(name="fedsgd"), noise=noise)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the record that is written."""
    name, images, y, inputs = load(options.images)
    x = inputs.normalise(images)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        built = apply_defence(options.defence, build_model(model, inputs, seed=options.seed), inputs, seed=options.seed)
        victim = Victim(model=built, inputs=inputs, name=model)
        seen = sent(victim, x[: options.images], y[: options.images])
        for spec in options.attacks:
            attack, began = build_attack(spec), time.process_time()
            found = attack(victim, seen, generator=torch.Generator().manual_seed(options.seed))
            row = {
                "model": model,
                "attack": spec,
                "psnr": [
                    None if one.inputs is None
                    else round(float(psnr(inputs.denormalise(one.inputs).clamp(0, 1), images[i : i + 1])), 2)
                    for i, one in enumerate(found)
                ],
                "matching_loss": [one.matching_loss for one in found],
                "method": [one.method for one in found],
                "reason": [one.reason for one in found],
                "cpu_seconds": round(time.process_time() - began, 1),
            }  # fmt: skip
            rows.append(row)
            logger.info("%s", json.dumps(row))
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    return {"settings": {**settings, "data": name, "torch": torch.__version__}, "rows": rows}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lenet:init=uniform", "lenet", "mlp"], help="model specs")
    parser.add_argument(
        "--attacks",
        nargs="+",
        default=["portfolio:iterations=1000", "inverting-gradients:iterations=1000"],
        help="attack specs",
    )
    parser.add_argument("--defence", default="none", help="defence spec")
    parser.add_argument("--images", type=int, default=8, help="the first of the training images")
    parser.add_argument("--seed", type=int, default=0, help="of models and attacks")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    record = measure(options)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
