"""The demonstration of the convolutional bottleneck (CVB), re-measured: plain and adaptive attacks, 150 iterations.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/cvb_figures.py --out cvb.json

An untrained CNN (5x5 convolutions of 16, 32 and 64 channels with stride 2, one Linear), three images one at a time,
labels known, several initialisations. Signed Adam 0.1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacker.attacks import build_attack
from attacker.bench.problem import observe
from attacker.metrics import ssim
from attacker.victim import Victim
from fl_precode.defences import apply_defence
from fl_precode.models import InputSpec
from images import first_images

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}
PAIRS = (
    ("none", "inverting-gradients"),
    ("cvb", "inverting-gradients"),
    ("cvb", "ignore"),
    ("cvb", "noise-restoring"),
    ("cvb-reference", "inverting-gradients"),
    ("cvb-reference", "ignore"),
    ("cvb-reference", "noise-restoring"),
)


def cnn(activation: str, inputs: InputSpec, seed: int) -> nn.Module:
    """Three convolutions that halve the image, then the classifier."""
    act = ACTIVATIONS[activation]
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((inputs.channels, 16, 32, 64)):
        layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), act()]
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(64 * (inputs.height // 8) * (inputs.width // 8), inputs.classes)
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """SSIM of every image for every initialisation, weight of the prior, defence and attack."""
    name, images, labels, inputs = first_images(options.images)
    rows = []
    for activation, tv, (defence, attack) in itertools.product(ACTIVATIONS, options.total_variation, PAIRS):
        found: list[float] = []
        for seed in range(options.seeds):
            model = apply_defence(defence, cnn(activation, inputs, seed), inputs)
            victim = Victim(model=model, inputs=inputs)
            torch.manual_seed(1000 + seed)  # the clients' noise
            seen = observe(victim, images, labels, batch_size=1)
            seen = [replace(one, protocol=replace(one.protocol, defence=defence)) for one in seen]
            spec = f"{attack}:iterations={options.iterations},learning_rate=0.1,total_variation={tv:g}"
            results = build_attack(spec)(
                victim, seen, generator=torch.Generator().manual_seed(seed), labels=list(labels.split(1))
            )
            for one, truth in zip(results, images, strict=True):
                if one.inputs is None:
                    raise SystemExit(f"{spec}: {one.reason}")
                found.append(float(ssim(inputs.denormalise(one.inputs).clamp(0, 1), truth[None]).mean()))
        row = {"activation": activation, "total_variation": tv, "defence": defence, "attack": attack, "ssim": found}
        print(f"{activation}, tv {tv:g}, {defence}, {attack}: {statistics.fmean(found):.2f}")
        rows.append(row)
    return {"images": name, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="initialisations")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--total-variation", type=float, nargs="+", default=[1e-4, 1e-2])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    options.out.write_text(json.dumps(measure(options), indent=1))


if __name__ == "__main__":
    main()
