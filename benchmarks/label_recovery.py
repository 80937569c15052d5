"""Accuracy of every method of label recovery against the batch size, before and after training.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/label_recovery.py --out labels.json --table labels.md

Accuracy is the share of a batch's labels found: the overlap of the two multisets over the batch size. Batches have
labels that repeat (class weights drawn from Dirichlet(0.5) for each batch) or are all different. Of several local steps
the labels of all steps count, drawn together and dealt out at random. Images of CIFAR-10 where ../shared/data has them,
else `photos`.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import command_line
from attacker.simulate import observe, observe_training
from fl_precode import Observation, Protocol, Victim
from fl_precode.labels import LABEL_RECOVERY, best_labels, recover_labels
from fl_precode.models import InputSpec, build_model

logger = logging.getLogger("label_recovery")

CIFAR10 = Path(__file__).resolve().parents[1] / "../shared/data/cifar10/cifar10_lossless_subset.npz"
BATCHES = {"repeated": (1, 2, 4, 8, 16, 32, 64), "distinct": (1, 2, 4, 8)}
STEPS = (1, 4, 16)
IMAGES_IN_A_STEP = 8
RATES = (0.1, 0.01)
TRAINING_BATCH = 64
BEST = "best_labels"
GUESS = "guess (no attack)"
METHODS = (*LABEL_RECOVERY, BEST, GUESS)


def load(limit: int) -> tuple[str, Tensor, Tensor, InputSpec]:
    """Name of the data, images (n, C, H, W) in [0, 1], labels (n,), input domain."""
    if not CIFAR10.exists():
        from fl_precode.data import load_data

        logger.info("%s is absent: using the embedded photos", CIFAR10)
        data = load_data("photos")
        images, labels = data.train.batch(list(range(min(limit, len(data.train)))))
        return "photos", images, labels, data.inputs
    with np.load(CIFAR10) as arrays:
        pixels, labels = arrays["train_images"][:limit], arrays["train_labels"][:limit]
    inputs = InputSpec(
        channels=3,
        height=32,
        width=32,
        classes=10,
        mean=(0.49147, 0.48226, 0.44677),
        std=(0.24703, 0.24349, 0.26159),
    )
    return (
        "cifar10",
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255,
        torch.from_numpy(labels).long(),
        inputs,
    )


def train(victim: Victim, x: Tensor, y: Tensor, *, steps: int, generator: torch.Generator) -> float:
    """Train in place by Adam; the share of the pool that the model then has right."""
    optimiser = torch.optim.Adam(victim.model.parameters(), lr=1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(x), (TRAINING_BATCH,), generator=generator)
        optimiser.zero_grad()
        victim.training_loss(x[chosen], y[chosen]).backward()
        optimiser.step()
    with torch.no_grad():
        right = [
            (victim.model(part).argmax(1) == wanted).float()
            for part, wanted in zip(x.split(512), y.split(512), strict=True)
        ]
    return float(torch.cat(right).mean())


def draw(y: Tensor, batch: int, kind: str, classes: int, generator: torch.Generator) -> Tensor:
    """Indices (batch,) of images with labels of the wanted kind."""
    if kind == "distinct":
        labels = torch.randperm(classes, generator=generator)[:batch]
    else:
        gamma = torch._standard_gamma(torch.full((classes,), 0.5), generator=generator)
        labels = torch.multinomial(gamma + 1e-9, batch, replacement=True, generator=generator)
    pools = [(y == label).nonzero().flatten() for label in labels.tolist()]
    return torch.stack([pool[torch.randint(len(pool), (), generator=generator)] for pool in pools])


def overlap(found: Tensor | None, truth: Tensor, classes: int) -> float:
    """Size of the common multiset over the batch size; 0 when nothing was found."""
    if found is None:
        return 0.0
    counts = [torch.bincount(labels, minlength=classes) for labels in (found, truth)]
    return float(torch.minimum(*counts).sum()) / len(truth)


def attempt(method: str, victim: Victim, observation: Observation, options: argparse.Namespace) -> Tensor | None | str:
    """The labels found, None, or why the method does not apply."""
    generator = torch.Generator().manual_seed(options.seed)
    if method == GUESS:  # as many images of each class as of every other
        classes = victim.inputs.classes
        size = observation.batch_size or 0
        return torch.randperm(classes, generator=generator).repeat(-(-size // classes))[:size]
    if method == BEST:
        found, reason = best_labels(victim, observation, generator=generator, probes=options.probes)
        return reason if found is None else found
    try:
        return recover_labels(method, victim, observation, generator=generator, probes=options.probes)
    except ValueError as error:
        return str(error)


def measure_model(
    victim: Victim, x: Tensor, y: Tensor, options: argparse.Namespace, generator: torch.Generator
) -> list[dict[str, Any]]:
    """One record for each kind of update, size, draw and method."""
    rows = []
    for kind, sizes in BATCHES.items():
        for batch in sizes:
            for _ in range(options.draws):
                chosen = draw(y, batch, kind, victim.inputs.classes, generator)
                (observation,) = observe(
                    victim, x[chosen], y[chosen], batch_size=batch, protocol=Protocol(name="fedsgd")
                )
                row = {"kind": kind, "size": batch}
                rows += [{**row, **one} for one in measure_methods(victim, observation, y[chosen], options)]
    for rate in RATES:
        for steps in STEPS:
            for _ in range(options.draws):
                chosen = draw(y, steps * IMAGES_IN_A_STEP, "repeated", victim.inputs.classes, generator)
                chosen = chosen[torch.randperm(len(chosen), generator=generator)]
                parts = [(x[part], y[part]) for part in chosen.chunk(steps)]
                protocol = Protocol(name="fedavg", local_steps=steps, learning_rate=rate)
                observation = observe_training(victim, parts, batch_size=len(chosen), protocol=protocol)
                row = {"kind": f"steps, rate {rate:g}", "size": steps}
                rows += [{**row, **one} for one in measure_methods(victim, observation, y[chosen], options)]
    return rows


def measure_methods(
    victim: Victim, observation: Observation, truth: Tensor, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One record for each method."""
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        found = attempt(method, victim, observation, options)
        if isinstance(found, str):
            rows.append({"method": method, "not applicable": found})
        else:
            rows.append({"method": method, "accuracy": overlap(found, truth, victim.inputs.classes)})
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the record that is written."""
    name, images, y, inputs = load(options.pool)
    x = inputs.normalise(images)
    rows: list[dict[str, Any]] = []
    accuracies: dict[str, list[float]] = {}
    began = time.perf_counter()
    for model in options.models:
        for seed in range(options.seed, options.seed + options.seeds):
            generator = torch.Generator().manual_seed(seed)
            victim = Victim(model=build_model(model, inputs, seed=seed), inputs=inputs, name=model)
            for state in ("untrained", "trained"):
                if state == "trained":
                    right = train(victim, x, y, steps=options.steps, generator=generator)
                    accuracies.setdefault(model, []).append(right)
                found = measure_model(victim, x, y, options, generator)
                rows += [{"model": model, "state": state, "seed": seed, **row} for row in found]
                logger.info("%s, seed %d, %s: %.0f s", model, seed, state, time.perf_counter() - began)
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "table")}
    return {
        "settings": {**settings, "data": name, "torch": torch.__version__},
        "accuracy_of_the_trained_models": accuracies,
        "seconds": time.perf_counter() - began,
        "rows": rows,
    }


def cell(rows: list[dict[str, Any]]) -> str:
    """Mean accuracy, or a dash where the method never applies."""
    values = [row["accuracy"] for row in rows if "accuracy" in row]
    return f"{sum(values) / len(values):.2f}" if values else "–"


def write_tables(record: dict[str, Any], write: Callable[[str], object]) -> None:
    """One markdown table for each kind of update."""
    kinds = {f"Labels {kind}, by batch size": (kind, sizes) for kind, sizes in BATCHES.items()}
    kinds |= {
        f"{IMAGES_IN_A_STEP} images in each local step, learning rate {rate:g}, by steps": (
            f"steps, rate {rate:g}",
            STEPS,
        )
        for rate in RATES
    }
    for title, (kind, sizes) in kinds.items():
        write(f"{title}:\n\n| model | method | {' | '.join(map(str, sizes))} |\n")
        write(f"| --- | --- |{' ---: |' * len(sizes)}\n")
        for model in record["settings"]["models"]:
            for state in ("untrained", "trained"):
                for method in METHODS:
                    wanted = {"kind": kind, "model": model, "state": state, "method": method}
                    rows = [row for row in record["rows"] if wanted.items() <= row.items()]
                    cells = [cell([row for row in rows if row["size"] == size]) for size in sizes]
                    write(f"| {model}, {state} | {method} | {' | '.join(cells)} |\n")
        write("\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet"], help="model specs")
    parser.add_argument("--seeds", type=int, default=3, help="models of each kind")
    parser.add_argument("--draws", type=int, default=8, help="updates for each model, state, kind and size")
    parser.add_argument("--steps", type=int, default=300, help="of the short training")
    parser.add_argument("--pool", type=int, default=4000, help="training images, the clients' images among them")
    parser.add_argument("--probes", type=int, default=256, help="random inputs of the methods that probe the model")
    parser.add_argument("--table", type=Path, help="markdown file to write")
    options = command_line.parse(parser)
    record = measure(options)
    write_tables(record, sys.stdout.write)
    command_line.write_record(record, options)
    if options.table:
        with options.table.open("w", encoding="utf-8") as target:
            write_tables(record, target.write)


if __name__ == "__main__":
    main()
