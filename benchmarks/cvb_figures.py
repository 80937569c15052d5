"""The demonstration of the convolutional bottleneck (CVB), re-measured: plain and adaptive attacks, 150 iterations.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/cvb_figures.py --out cvb.json

An untrained CNN (5x5 convolutions of 16, 32 and 64 channels with stride 2 and no padding, ReLU, one Linear), images one
at a time, labels known, several initialisations. Signed Adam 1 without decay, total variation 0.1, the iterate with the
smallest distance: what the authors' demonstration uses. Their SSIM is taken after each image, true or reconstructed,
was stretched to its own least and largest value; both are given.
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
from torch import Tensor, nn

from attacker.simulate import observe
from fl_precode import Victim
from fl_precode.attacks import build_attack
from fl_precode.defences.registry import apply_defence
from fl_precode.metrics import ssim
from fl_precode.models import InputSpec
from fl_precode.randomness.seeding import seeded
from images import first_images

PAIRS = (
    ("none", "inverting-gradients"),
    ("cvb", "inverting-gradients"),
    ("cvb", "ignore"),
    ("cvb", "noise-restoring"),
    ("cvb-reference", "inverting-gradients"),
    ("cvb-reference", "ignore"),
    ("cvb-reference", "noise-restoring"),
)


def cnn(inputs: InputSpec, seed: int) -> nn.Module:
    """Three convolutions, which leave one pixel of 32x32, then the classifier."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((inputs.channels, 16, 32, 64)):
        layers += [nn.Conv2d(before, after, 5, stride=2), nn.ReLU()]
    body = nn.Sequential(*layers, nn.Flatten())
    features = body(torch.zeros(1, inputs.channels, inputs.height, inputs.width)).shape[1]
    return nn.Sequential(*body, nn.Linear(features, inputs.classes))


def stretched(image: Tensor) -> Tensor:
    """The image from its least value, 0, to its largest, 1."""
    return (image - image.min()) / (image.max() - image.min()).clamp_min(1e-5)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """SSIM of every image for every initialisation, step, weight of the prior, defence and attack."""
    name, images, labels, inputs = first_images(options.images)
    rows = []
    for rate, tv, (defence, attack) in itertools.product(options.learning_rate, options.total_variation, PAIRS):
        spec = (
            f"{attack}:iterations={options.iterations},learning_rate={rate:g},total_variation={tv:g},"
            "schedule=constant,iterate=best"
        )
        found: list[float] = []
        theirs: list[float] = []
        for seed in range(options.seeds):
            model = apply_defence(defence, cnn(inputs, seed), inputs)
            victim = Victim(model=model, inputs=inputs)
            with seeded(1000 + seed):  # the clients' noise
                seen = observe(victim, victim.inputs.normalise(images), labels, batch_size=1)
            seen = [replace(one, protocol=replace(one.protocol, defence=defence)) for one in seen]
            results = build_attack(spec)(
                victim, seen, generator=torch.Generator().manual_seed(seed), labels=list(labels.split(1))
            )
            for one, truth in zip(results, images, strict=True):
                if one.inputs is None:
                    raise SystemExit(f"{spec}: {one.reason}")
                image = inputs.denormalise(one.inputs).clamp(0, 1)
                found.append(float(ssim(image, truth[None]).mean()))
                theirs.append(float(ssim(stretched(image), stretched(truth[None])).mean()))
        rows.append({"defence": defence, "attack": spec, "ssim": found, "ssim_stretched": theirs})
        print(f"{defence}, {spec}: {statistics.fmean(found):.2f}, stretched {statistics.fmean(theirs):.2f}", flush=True)
    return {"images": name, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="initialisations")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[1.0])
    parser.add_argument("--total-variation", type=float, nargs="+", default=[0.1])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    options.out.write_text(json.dumps(measure(options), indent=1))


if __name__ == "__main__":
    main()
