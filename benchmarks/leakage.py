"""What the influence function costs by products with J, and how close they come.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/leakage.py --out leakage.jsonl

Each measurement is one line of the file; those that are there are not repeated, so that a run can be interrupted and
taken up again. The first training images of CIFAR-10 where ../shared/data has them, else of `photos`. RMSE of pixels in
[0, 1], CPU seconds of this process. Whether it predicts measured errors is `fl-precode reproduce i2f`. Parts:

solver     Conjugate gradients beside the dense solve at the same damping.
glance     The bound from below by short Lanczos runs beside exact E-I2F, on DLG's LeNet.
resnet18   Risk of --images by `glance` in --workers processes of one thread: seconds and memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacker.experiments.published_nets import model_of
from attacker.leakage import released
from attacker.metrics.intervals import rank_correlation
from fl_precode import Victim
from fl_precode.leakage import Jacobian, expected_error, glance, influence, spectrum
from images import first_images

logger = logging.getLogger("leakage")
PARTS = ("solver", "glance", "resnet18")
STEPS = (1, 2, 4, 6, 8, 12, 16, 32, 60)
Row = dict[str, Any]
Jobs = Iterator[tuple[str, Callable[[], Iterator[Row]]]]


def main() -> None:
    """Measure what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("leakage.jsonl"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1, help="processes, for resnet18")
    parser.add_argument("--steps", type=int, default=6, help="of Lanczos, for resnet18")
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    done = {row["key"] for row in _rows(options.out)}
    for part in options.parts:
        if part == "resnet18":
            many(options, done)
            continue
        for key, measure in globals()[f"{part}_jobs"](options):
            if key in done:
                continue
            rows = list(measure())  # written at once: what was interrupted is measured again
            _keep(options.out, [{"key": key, "part": part, **row} for row in rows])
            logger.info("%s", key)
    tell(_rows(options.out))


def _rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _keep(path: Path, rows: list[Row]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def lenet(options: argparse.Namespace) -> tuple[Victim, Tensor, Tensor]:
    """DLG's LeNet in float64, with images and labels."""
    _, images, labels, inputs = first_images(max(options.images, 1))
    model = model_of("lenet", inputs, start="uniform", seed=options.seed)
    return Victim(model=model.double(), inputs=inputs, name="lenet"), images.double(), labels


def noise_of(jacobian: Jacobian, std: float, seed: int) -> Tensor:
    """Gaussian noise on the gradient."""
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(jacobian.columns, generator=generator, dtype=torch.float64)


def solver_jobs(options: argparse.Namespace) -> Jobs:
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


def glance_jobs(options: argparse.Namespace) -> Jobs:
    victim, images, labels = lenet(options)

    def one(index: int) -> Iterator[Row]:
        jacobian = Jacobian(released(victim, labels[index : index + 1]), images[index : index + 1])
        seen = spectrum(jacobian)
        row: Row = {"image": index, "exact": seen.expected_rmse(1.0), "norm": float(jacobian.gradient.norm())}
        for steps in STEPS:
            found = glance(jacobian, generator=torch.Generator().manual_seed(index), steps=steps)
            row |= {f"at_least {steps}": found.at_least, f"top {steps}": found.largest.value / seen.largest}
        damped = expected_error(
            jacobian, seen.largest, generator=torch.Generator().manual_seed(index), damping=1e-4, probes=1, steps=60
        )
        yield row | {"lower_bound": found.lower_bound, "damped 1e-4": damped.rmse}

    for index in range(options.images):
        yield f"glance {index}", lambda index=index: one(index)


def many(options: argparse.Namespace, done: set[str]) -> None:
    """The risk of each image under ResNet18, by processes that share nothing."""
    left = [index for index in range(options.images) if f"resnet18 {index}" not in done]
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, _begin, (options.images, options.seed)) as pool:
        for number, one in enumerate(as_completed([pool.submit(_glanced, index, options.steps) for index in left]), 1):
            wall = time.perf_counter() - began
            _keep(options.out, [{"part": "resnet18", "workers": options.workers, **one.result(), "wall": wall}])
            logger.info("resnet18: %d of %d, %.0f s", number, len(left), wall)


_known: dict[str, Any] = {}
"""What a worker holds: the victim, all images and their labels."""


def _begin(count: int, seed: int) -> None:
    torch.set_num_threads(1)
    _, images, labels, inputs = first_images(count)
    model = model_of("resnet18", inputs, start="default", seed=seed)
    _known.update(victim=Victim(model=model, inputs=inputs, name="resnet18"), images=images, labels=labels)


def _glanced(index: int, steps: int) -> Row:
    own, began = slice(index, index + 1), time.process_time()
    jacobian = Jacobian(released(_known["victim"], _known["labels"][own]), _known["images"][own])
    found = glance(jacobian, generator=torch.Generator().manual_seed(index), steps=steps)
    top = found.largest
    row = {"key": f"resnet18 {index}", "image": index, "norm": float(jacobian.gradient.norm()), "steps": steps}
    row |= {"largest": top.value, "residual": top.residual, "i_lb": found.lower_bound, "at_least": found.at_least}
    return row | {"cpu": time.process_time() - began, "peak_mib": _peak()}


def tell(rows: list[Row]) -> None:
    """Medians, and how well exact values are followed."""
    seen = [row for row in rows if row["part"] == "glance"]
    if len(seen) > 3:
        exact = [row["exact"] for row in seen]
        for name in (*(f"at_least {steps}" for steps in STEPS), "damped 1e-4", "lower_bound", "norm"):
            values = [row[name] for row in seen]
            share = statistics.median(value / true for value, true in zip(values, exact, strict=True))
            found = rank_correlation(values, exact)
            logger.info("%s: %.2g of the exact value, Spearman %s, %d images", name, share, found, len(seen))
    seen = [row for row in rows if row["part"] == "resnet18"]
    if seen:
        cpu, peak = [row["cpu"] for row in seen], max(row["peak_mib"] for row in seen)
        logger.info("resnet18: %d images, %.2f CPU s (median %.2f), %.0f MiB a process", len(seen),
                    sum(cpu) / len(cpu), statistics.median(cpu), peak)  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
