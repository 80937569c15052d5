"""How often SPEAR recovers a batch exactly, and what it costs.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/spear.py --out spear.json

Batches follow each other in the training images of CIFAR-10 (`images.first_images`), one gradient each, labels
recovered. An image counts as exact above 60 dB. CPU seconds of this process, refusal's check included.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacker.simulate import observe
from fl_precode import Protocol, Victim
from fl_precode.attacks import Attack, build_attack
from fl_precode.metrics import label_accuracy, match_batch, psnr
from fl_precode.models.input_spec import InputSpec
from images import INPUTS, first_images
from training import cifar10, trained

logger = logging.getLogger("spear")

EXACT = 60.0
SKIP = 4096
"""Training images that models are not trained on: the attacked ones are the first."""


def narrow_mlp(inputs: InputSpec) -> nn.Module:
    """d-400-C with ReLU."""
    features = math.prod(inputs.shape)
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(features, 400),
            relu=nn.ReLU(),
            classifier=nn.Linear(400, inputs.classes),
        )
    )


def attacked(attack: Attack, victim: Victim, x: Tensor, y: Tensor, images: Tensor, number: int) -> dict[str, Any]:
    """One batch: PSNR of each image, labels found, matching loss, CPU seconds."""
    (observation,) = observe(victim, x, y, batch_size=len(x), protocol=Protocol(name="fedsgd"))
    began = time.process_time()
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(number))
    seconds = time.process_time() - began
    row: dict[str, Any] = {"outcome": found.outcome.value, "reason": found.reason, "cpu_seconds": round(seconds, 3)}
    if found.inputs is None or found.labels is None or len(found.inputs) != len(images):
        return row
    restored = victim.inputs.denormalise(found.inputs)
    order = match_batch(restored, images)
    return row | {
        "psnr": [round(value, 1) for value in psnr(restored[order], images).tolist()],
        "labels": round(label_accuracy(found.labels, y), 3),
        "labels_in_place": round(float((found.labels[order] == y).double().mean()), 3),
        "matching_loss": found.matching_loss,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Batches that were reconstructed whole and exactly, and the rest of a table's line."""
    exact = [row for row in rows if row.get("psnr") and min(row["psnr"]) > EXACT]
    values = sorted(value for row in rows for value in row.get("psnr", []))
    seconds = sorted(row["cpu_seconds"] for row in rows)
    return {
        "batches": len(rows),
        "exact": len(exact),
        "worst_psnr": values[0] if values else None,
        "median_psnr": values[len(values) // 2] if values else None,
        "labels": min((row["labels_in_place"] for row in exact), default=None),
        "cpu_seconds_median": seconds[len(seconds) // 2],
        "cpu_seconds_max": seconds[-1],
        "reasons": sorted({row["reason"] for row in rows if row["reason"]}),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the record that is written."""
    name, images, y, inputs = first_images(max(options.sizes) * options.batches)
    x, rows = inputs.normalise(images), []
    for model in options.models:
        for steps in options.steps:
            if steps and inputs is not INPUTS:
                logger.info("no CIFAR-10 to train on: %s is left untrained", model)
                continue
            data = cifar10(train=options.train, test=1000, skip=SKIP) if inputs is INPUTS else None
            for defence in options.defences:
                victim = _victim(model, data, inputs, steps, defence, options)
                for size in options.sizes:
                    batches = [slice(size * i, size * (i + 1)) for i in range(options.batches)]
                    found = [
                        attacked(build_attack(options.attack), victim, x[one], y[one], images[one], i)
                        for i, one in enumerate(batches)
                    ]
                    row = {"model": model, "steps": steps, "defence": defence, "batch": size, **summary(found)}
                    logger.info("%s", json.dumps(row))
                    rows.append(row | {"each": found})
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return {"settings": {**settings, "data": name, "torch": torch.__version__}, "rows": rows}


def _victim(model: str, data: Any, inputs: InputSpec, steps: int, defence: str, options: argparse.Namespace) -> Victim:
    if data is None:
        from fl_precode.defences.registry import apply_defence
        from fl_precode.models import build_model

        built = apply_defence(defence, build_model(model, inputs, seed=options.seed), inputs, seed=options.seed)
        return Victim(model=built, inputs=inputs, name=model)
    made = trained(model, data, steps=steps, seed=options.seed, defence=defence, cache=options.cache)
    logger.info("%s after %d steps: accuracy %.3f", model, steps, made.accuracy)
    return Victim(model=made.model, inputs=inputs, name=model)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["spear:narrow_mlp"], help="model specs")
    parser.add_argument("--defences", nargs="+", default=["none"], help="defence specs")
    parser.add_argument("--attack", default="spear", help="attack spec")
    parser.add_argument("--sizes", nargs="+", type=int, default=[2, 4, 8, 16], help="images of a batch")
    parser.add_argument("--batches", type=int, default=10, help="of each size")
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 1000], help="of training, 0 for untrained")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--cache", type=Path, help="folder of weights")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    record = measure(options)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
