"""What the analytic attacks reach through PRECODE, before and during training.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/analytic.py --out analytic.json --table analytic.md

LeNet with 256 latent units in front of the classifier. One image for each update, gradients in float32, labels
recovered by the attacks. PSNR in dB on clamped [0, 1] images, CPU seconds an image on one thread. What the JSON file
already holds is not run again. The papers' own nets, and noise, are `fl-precode reproduce hybrid`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacker.experiments.published_nets import LENET, Net, convolutions
from fl_precode import Victim
from fl_precode.attacks import build_attack
from fl_precode.defences.registry import apply_defence
from fl_precode.metrics import psnr, ssim
from fl_precode.models.lenet import init_uniform
from fl_precode.objective import training_loss
from images import CIFAR10, INPUTS, first_images
from portfolio import sent

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky-relu": lambda: nn.LeakyReLU(0.01),
}
ATTACKS = ("through-bottleneck", "then-refine:iterations=0")
SKIPPED = 1000
"""The first training images, which are attacked and not trained on."""
BATCH = 64


def defended(activation: str, init: str) -> nn.Module:
    """LeNet with PRECODE, untrained."""
    torch.manual_seed(0)
    net = Net(shapes=LENET, activation=ACTIVATIONS[activation], bias=True)
    model = apply_defence("precode", nn.Sequential(*convolutions(3, net), nn.Linear(768, 10)), INPUTS, seed=0)
    if init == "uniform":
        torch.manual_seed(0)
        init_uniform(model)
    return model


def train(model: nn.Module, epochs: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """Weights after each of these epochs of Adam, on the lossless training images that are not attacked."""
    with np.load(CIFAR10) as arrays:
        kept = arrays["train_index"] >= SKIPPED
        pixels, labels = arrays["train_images"][kept], torch.from_numpy(arrays["train_labels"][kept]).long()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    torch.manual_seed(1)
    optimiser, found = torch.optim.Adam(model.parameters(), lr=1e-3), {}
    for epoch in range(max(epochs) + 1):
        if epoch in epochs:
            found[epoch] = {name: value.detach().clone() for name, value in model.state_dict().items()}
        for batch in torch.randperm(len(images)).split(BATCH) if epoch < max(epochs) else ():
            optimiser.zero_grad()
            training_loss(model, INPUTS.normalise(images[batch].float() / 255), labels[batch]).backward()
            optimiser.step()
    return found


def attack_cell(model: nn.Module, attack: str, count: int) -> dict[str, Any]:
    """Figures of one attack on the first images."""
    _, images, labels, _ = first_images(count)
    victim = Victim(model=model, inputs=INPUTS, name="lenet")
    x = INPUTS.normalise(images)
    seen = sent(victim, x[:count], labels[:count])
    began = time.process_time()
    found = build_attack(attack)(victim, seen, generator=torch.Generator().manual_seed(0))
    seconds = (time.process_time() - began) / count
    made = torch.cat([torch.zeros_like(x[:1]) if one.inputs is None else one.inputs for one in found])
    made = INPUTS.denormalise(made).clamp(0, 1)
    right = [one.labels is not None and int(one.labels) == int(y) for one, y in zip(found, labels, strict=True)]
    return {
        "psnr": [round(min(value, 999.0), 2) for value in psnr(made, images).tolist()],
        "ssim": [round(value, 3) for value in ssim(made, images).tolist()],
        "reason": [one.reason for one in found],
        "labels_right": sum(right),
        "matching_loss": [one.matching_loss for one in found],
        "cpu_seconds": seconds,
    }


def write_table(content: dict[str, Any], write: Callable[[str], object]) -> None:
    """Median, least and most: one image in sixteen may be a hundred dB from another."""
    write(
        "| LeNet | epochs | attack | PSNR: median (least to most) | mean SSIM | SSIM .6 and more | CPU s an image |\n"
    )
    write("| --- | ---: | --- | --- | ---: | ---: | ---: |\n")
    for key, cell in content["cells"].items():
        model, epochs, attack, _ = key.split(" | ")
        values, alike = sorted(cell["psnr"]), cell["ssim"]
        write(f"| {model} | {epochs} | {attack} | {np.median(values):.1f} ({values[0]:.1f} to {values[-1]:.1f}) ")
        write(f"| {np.mean(alike):.3f} | {sum(one >= 0.6 for one in alike)} of {len(alike)} ")
        write(f"| {cell['cpu_seconds']:.2f} |\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="the first of the training images")
    parser.add_argument("--epochs", type=int, nargs="+", default=[0, 1, 20])
    parser.add_argument("--only", default="", help="models and starts whose name contains this, such as 'tanh default'")
    parser.add_argument("--table", type=Path, help="markdown file")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; taken up where it ends")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"data": first_images(1)[0], "torch": torch.__version__, "cells": {}}
    if options.out.exists():
        content = json.loads(options.out.read_text())
    for activation, init in product(ACTIVATIONS, ("uniform", "default")):
        name = f"{activation} {init}"
        keys = {(e, a): f"{name} | {e} | {a} | {options.images}" for e in options.epochs for a in ATTACKS}
        left = {cell: key for cell, key in keys.items() if key not in content["cells"]}
        if options.only not in name or not left:
            continue
        model = defended(activation, init)
        weights = train(model, options.epochs) if any(options.epochs) else {0: model.state_dict()}
        for (epoch, attack), key in left.items():
            model.load_state_dict(weights[epoch])
            content["cells"][key] = found = attack_cell(model, attack, options.images)
            print(key, found["psnr"], f"{found['cpu_seconds']:.2f} s", file=sys.stderr, flush=True)
            part = options.out.with_suffix(".part")
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            part.replace(options.out)
    write_table(content, sys.stdout.write)
    if options.table is not None:
        with options.table.open("w", encoding="utf-8") as target:
            write_table(content, target.write)


if __name__ == "__main__":
    main()
