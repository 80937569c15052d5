"""What the influence function costs by products with J, and how close they come.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/leakage.py --out leakage.jsonl

Each measurement is one line of the file; those that are there are not repeated, so that a run can be interrupted and
taken up again. The first training images of CIFAR-10 where ../shared/data has them, else of `photos`. RMSE of pixels in
[0, 1], CPU seconds of this process. Whether it predicts measured errors is `fl-precode reproduce i2f`. Parts:

solver     Conjugate gradients beside the dense solve at the same damping.
resnet18   Seconds and memory of I_lb and E-I2F.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacker.leakage import Jacobian, influence, largest, lower_bound, released, spectrum
from attacker.leakage.influence import expected_error
from attacker.reproduce.nets import model_of
from attacker.victim import Victim
from images import first_images

logger = logging.getLogger("leakage")
PARTS = ("solver", "resnet18")
Row = dict[str, Any]


def main() -> None:
    """Measure what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("leakage.jsonl"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    done = {json.loads(line)["key"] for line in options.out.read_text().splitlines()} if options.out.exists() else set()
    for part in options.parts:
        for key, measure in globals()[f"{part}_jobs"](options):
            if key in done:
                continue
            rows = list(measure())  # written at once: what was interrupted is measured again
            with options.out.open("a") as file:
                file.writelines(json.dumps({"key": key, "part": part, **row}) + "\n" for row in rows)
            logger.info("%s", key)


def lenet(options: argparse.Namespace) -> tuple[Victim, Tensor, Tensor]:
    """DLG's LeNet in float64, with images and labels."""
    _, images, labels, inputs = first_images(max(options.images, 1))
    model = model_of("lenet", inputs, start="uniform", seed=options.seed)
    return Victim(model=model.double(), inputs=inputs, name="lenet"), images.double(), labels


def noise_of(jacobian: Jacobian, std: float, seed: int) -> Tensor:
    """Gaussian noise on the gradient."""
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(jacobian.columns, generator=generator, dtype=torch.float64)


def solver_jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    victim, images, labels = lenet(options)

    def one(index: int) -> Iterator[Row]:
        jacobian = Jacobian(released(victim, labels[index : index + 1]), images[index : index + 1])
        began = time.process_time()
        seen = spectrum(jacobian)
        dense, change = time.process_time() - began, noise_of(jacobian, 1e-3, index)
        for damping in (1e-4, 1e-6):
            began = time.process_time()
            found = influence(jacobian, change, seen.largest, damping=damping)
            cpu = time.process_time() - began
            exact = float(seen.influence(jacobian.to_image(change), damping=damping))
            share = exact / float(seen.influence(jacobian.to_image(change)))
            row = {"image": index, "damping": damping, "cg": found.norm, "dense": exact, "of_undamped": share}
            yield {**row, "steps": found.steps, "bound": found.bound, "cpu": cpu, "cpu_dense": dense}

    for index in range(min(8, options.images)):
        yield f"solver {index}", lambda index=index: one(index)


def resnet18_jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    _, images, labels, inputs = first_images(max(options.images, 1))
    model = model_of("resnet18", inputs, start="default", seed=options.seed)
    victim = Victim(model=model, inputs=inputs, name="resnet18")
    last: list[Tensor] = []

    def one(index: int, steps: int) -> Iterator[Row]:
        generator = torch.Generator().manual_seed(index)
        began = time.process_time()
        jacobian = Jacobian(released(victim, labels[index : index + 1]), images[index : index + 1])
        change = 1e-3 * torch.randn(jacobian.columns, generator=generator)
        top = largest(jacobian, generator=generator, start=last[-1] if last else None, tolerance=1e-2)
        last.append(top.vector)
        row = {"image": index, "norm": float(jacobian.gradient.norm()), "largest": top.value, "steps": top.steps}
        row |= {"i_lb": lower_bound(jacobian, change, top.upper) / jacobian.rows**0.5}
        row |= {"cpu": time.process_time() - began, "peak_mib": _peak()}
        if steps:
            began = time.process_time()
            found = expected_error(jacobian, top.value, generator=generator, damping=1e-4, probes=1, steps=steps)
            row |= {"unit_rmse": found.rmse, "products": found.steps, "cpu_expected": time.process_time() - began}
        yield row

    for index in range(min(8, options.images)):
        steps = 0 if index > 1 else 60
        yield f"resnet18 {index}", lambda i=index, s=steps: one(i, s)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
