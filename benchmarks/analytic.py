"""What the analytic attacks reach without luck: published nets, through PRECODE, and under noise.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/analytic.py --out analytic.json --table analytic.md

One CIFAR-10 image for each update, gradients in float32, labels recovered by the attacks. PSNR in dB on clamped [0, 1]
images, CPU seconds an image on one thread. What the JSON file already holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.attacks import build_attack
from attacker.engine.classifier import enter_one_logit
from attacker.engine.inversion import invert_chain
from attacker.engine.leaked import Leaked
from attacker.engine.sequential import chain
from attacker.metrics import psnr, ssim
from attacker.victim import Victim
from clients.train import training_loss
from fl_precode import Observation
from fl_precode.defences import apply_defence
from fl_precode.models.input_spec import InputSpec
from fl_precode.models.lenet import init_uniform
from images import first_images
from portfolio import observe

Shape = tuple[int, int, int, int, int]

# Chen and Campbell's nets: pixels minus 0.5, no biases but the classifier's, seed 10. In, out, kernel, stride, padding.
CENTRED = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(1.0,) * 3)
PLAIN = replace(CENTRED, mean=(0.0,) * 3)
NETS: dict[str, tuple[tuple[Shape, ...], int]] = {
    "cnn2_c1": (((3, 6, 3, 1, 0),), 5400),
    "cnn2_c2": (((3, 6, 4, 2, 0),), 1350),
    "cnn3_c1": (((3, 6, 3, 1, 0), (6, 3, 4, 2, 0)), 588),
    "cnn3_c2": (((3, 6, 4, 2, 0), (6, 3, 3, 2, 0)), 147),
    "cnn4_c1": (((3, 6, 3, 1, 0), (6, 5, 4, 2, 0), (5, 3, 4, 1, 0)), 363),
    "cnn4_c3": (((3, 6, 5, 1, 0), (6, 16, 5, 2, 0), (16, 16, 5, 1, 2)), 2304),
}
LENET: tuple[Shape, ...] = ((3, 12, 5, 2, 2), (12, 12, 5, 2, 2), (12, 12, 5, 1, 2))
CNN6: tuple[Shape, ...] = (
    (3, 12, 4, 2, 2), (12, 36, 3, 2, 1), (36, 36, 3, 1, 1), (36, 36, 3, 1, 1), (36, 64, 3, 2, 1), (64, 128, 3, 1, 1),
)  # fmt: skip
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky-relu": lambda: nn.LeakyReLU(0.01),
}


def convolutions(shapes: tuple[Shape, ...], activation: Callable[[], nn.Module], *, bias: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for given, made, kernel, stride, padding in shapes:
        layers += [nn.Conv2d(given, made, kernel, stride=stride, padding=padding, bias=bias), activation()]
    return [*layers, nn.Flatten()]


def published(name: str) -> Victim:
    """A net of Chen and Campbell, or DLG's sigmoid LeNet with weights from U(-0.5, 0.5)."""
    if name == "dlg-lenet":
        torch.manual_seed(1234)
        model = nn.Sequential(*convolutions(LENET, nn.Sigmoid, bias=True), nn.Linear(768, 10))
        init_uniform(model)
        return Victim(model=model, inputs=PLAIN, name=name)
    shapes, features = NETS[name]
    torch.manual_seed(10)
    model = nn.Sequential(*convolutions(shapes, nn.Tanh, bias=False), nn.Linear(features, 10))
    return Victim(model=model, inputs=CENTRED, name=name)


def defended(activation: str, init: str, steps: int) -> Victim:
    """LeNet with PRECODE; after some steps of Adam where asked for."""
    _, _, _, inputs = first_images(1)
    torch.manual_seed(0)
    model = nn.Sequential(*convolutions(LENET, ACTIVATIONS[activation], bias=True), nn.Linear(768, 10))
    model = apply_defence("precode", model, inputs, seed=0)
    torch.manual_seed(0)
    if init == "uniform":
        init_uniform(model)
    if steps:
        from training import cifar10

        data = cifar10(train=64 * steps, test=1, skip=1000)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(steps):
            images, labels = data.train.batch(list(range(64 * step, 64 * (step + 1))))
            optimiser.zero_grad()
            training_loss(model, inputs.normalise(images), labels).backward()
            optimiser.step()
    return Victim(model=model, inputs=inputs, name=f"lenet {activation} {init}")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Who attacks what; ``key`` says everything that the figures depend on."""

    key: str
    victim: Callable[[], Victim]
    attack: str
    images: int
    noise: float = 0.0


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Those of the groups asked for."""
    found = {"published": published_cells, "precode": precode_cells, "noise": noise_cells}
    for group in options.groups:
        yield from (cell for cell in found[group](options) if options.only in cell.key)


def published_cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Nets of the papers; the search only where their equations fall short."""
    n, few = options.images, min(options.images, options.refined_images)
    yield Cell(key=f"published | cnn6 | r-gap | {n}", victim=lambda: published("dlg-lenet"), attack="", images=n)
    for name in ("dlg-lenet", *NETS):
        soluble = name in ("dlg-lenet", "cnn2_c1")
        for attack, images in (("layerwise-inversion", n), ("hybrid", few))[: 1 if soluble else 2]:
            key = f"published | {name} | {attack} | {images}"
            yield Cell(key=key, victim=partial(published, name), attack=attack, images=images)


def precode_cells(options: argparse.Namespace) -> Iterator[Cell]:
    """LeNet behind PRECODE."""
    few = min(options.images, options.refined_images)
    attacks = (("through-bottleneck", options.images), ("then-refine:iterations=0", few))
    for steps, init, activation in product((0, options.training_steps), ("uniform", "default"), ACTIVATIONS):
        for attack, images in attacks:
            key = f"precode | lenet {activation} {init} {steps} steps | {attack} | {images}"
            yield Cell(key=key, victim=partial(defended, activation, init, steps), attack=attack, images=images)


def noise_cells(options: argparse.Namespace) -> Iterator[Cell]:
    """DLG's LeNet under Gaussian noise."""
    few = min(options.images, options.refined_images)
    attacks = ("layerwise-inversion", "then-refine", "inverting-gradients:iterations=600")
    for noise, attack in product((0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2), attacks):
        key = f"noise | dlg-lenet, std {noise:g} | {attack} | {few}"
        yield Cell(key=key, victim=partial(published, "dlg-lenet"), attack=attack, images=few, noise=noise)


def noisy(seen: Observation, std: float, seed: int) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    update = {name: value + std * torch.randn(value.shape, generator=generator) for name, value in seen.update.items()}
    return replace(seen, update=update)


def attack_cell(cell: Cell) -> dict[str, Any]:
    """Figures of one cell."""
    _, images, labels, _ = first_images(cell.images)
    if not cell.attack:
        return r_gap(images)
    victim = cell.victim()
    x = victim.inputs.normalise(images)
    seen = [observe(victim, x[i : i + 1], labels[i : i + 1], str(i)) for i in range(cell.images)]
    if cell.noise:
        seen = [noisy(one, cell.noise, i) for i, one in enumerate(seen)]
    began = time.process_time()
    found = build_attack(cell.attack)(victim, seen, generator=torch.Generator().manual_seed(0))
    seconds = (time.process_time() - began) / cell.images
    made = torch.cat([torch.zeros_like(x[:1]) if one.inputs is None else one.inputs for one in found])
    quality = figures(victim.inputs.denormalise(made), images)
    right = [one.labels is not None and int(one.labels) == int(y) for one, y in zip(found, labels, strict=True)]
    more = {"reason": [one.reason for one in found], "outcome": [str(one.outcome) for one in found]}
    losses = [one.matching_loss for one in found]
    return {**quality, **more, "labels_right": sum(right), "matching_loss": losses, "cpu_seconds": seconds}


def figures(made: Tensor, images: Tensor) -> dict[str, list[float]]:
    made = made.clamp(0, 1)
    return {
        "psnr": [round(min(value, 999.0), 2) for value in psnr(made, images).tolist()],
        "ssim": [round(value, 3) for value in ssim(made, images).tolist()],
    }


def r_gap(images: Tensor) -> dict[str, Any]:
    """R-GAP's CNN6: one logit, logistic loss, no biases; the label 1 is known, the margin is not."""
    torch.manual_seed(0)
    layers = convolutions(CNN6, lambda: nn.LeakyReLU(0.2), bias=False)
    model = nn.Sequential(*layers, nn.Linear(3200, 1, bias=False))
    steps = chain(Victim(model=model, inputs=PLAIN)).steps
    values = {name: value.detach().double()[None] for name, value in model.named_parameters()}
    last, made, seconds = steps[-1].parameter("weight"), [], 0.0
    for image in images.split(1):
        leaked = torch.autograd.grad(F.softplus(-model(image)).sum(), list(model.parameters()))
        gradients = {name: value.double()[None] for name, value in zip(values, leaked, strict=True)}
        began = time.process_time()
        tried = []
        for entry in enter_one_logit(values[last][0], gradients[last][0], 1):
            known = Leaked(
                parameters=values, gradients=gradients, buffers={}, features=entry.features[None],
                gradient=entry.gradient[None],
            )  # fmt: skip
            found = invert_chain(steps[:-1], known)
            tried.append((sum(float(one.residuals) for one in found.reports), found.inputs))
        seconds += time.process_time() - began
        made.append(min(tried, key=lambda pair: pair[0])[1].float())
    return {**figures(torch.cat(made), images), "cpu_seconds": seconds / len(images)}


def write_table(content: dict[str, Any], write: Callable[[str], object]) -> None:
    write("| problem | attack | PSNR of each image | mean PSNR / SSIM | CPU s an image |\n")
    write("| --- | --- | --- | ---: | ---: |\n")
    for key, cell in content["cells"].items():
        group, problem, attack, _ = key.split(" | ")
        values = " ".join(f"{value:.1f}" for value in cell["psnr"])
        means = [sum(cell[name]) / len(cell[name]) for name in ("psnr", "ssim")]
        write(f"| {group}: {problem} | {attack} | {values} | {means[0]:.1f} / {means[1]:.3f} ")
        write(f"| {cell['cpu_seconds']:.2f} |\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = ["published", "precode", "noise"]
    parser.add_argument("--groups", nargs="+", choices=groups, default=groups)
    parser.add_argument("--images", type=int, default=8, help="the first of the training images")
    parser.add_argument("--refined-images", type=int, default=4, help="at most so many for the longer searches")
    parser.add_argument("--only", default="", help="cells whose key contains this")
    parser.add_argument("--training-steps", type=int, default=150, help="of Adam, 64 images each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, help="markdown file")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; taken up where it ends")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    content: dict[str, Any] = {"data": first_images(1)[0], "torch": torch.__version__, "cells": {}}
    if options.out.exists():
        content = json.loads(options.out.read_text())
    for cell in cells(options):
        if cell.key not in content["cells"]:
            content["cells"][cell.key] = found = attack_cell(cell)
            print(cell.key, found["psnr"], f"{found['cpu_seconds']:.2f} s", file=sys.stderr)
            part = options.out.with_suffix(".part")
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            part.replace(options.out)
    write_table(content, sys.stdout.write)
    if options.table is not None:
        with options.table.open("w", encoding="utf-8") as target:
            write_table(content, target.write)


if __name__ == "__main__":
    main()
