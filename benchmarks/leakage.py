"""Whether the influence function predicts what attacks reach, and what it costs.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/leakage.py --out leakage.jsonl

Each measurement is one line of the file; those that are there are not repeated, so that a run can be interrupted and
taken up again. The first training images of CIFAR-10 where ../shared/data has them, else of `photos`. RMSE of pixels in
[0, 1], CPU seconds of this process. Parts:

noise      DLG's LeNet: exact I2F, E-I2F and I_lb beside the error of a converged local attack, by image and noise.
random     The same for an attack that starts from random pixels (L-BFGS), at one noise.
starts     Initialisations and models: E-I2F beside the local attack.
defences   Changes that defences make, on DLG's LeNet.
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

from attacker.leakage import Jacobian, Spectrum, defence_change, influence, largest, lower_bound, released, spectrum
from attacker.leakage.influence import expected_error
from attacker.leakage.released import Released
from attacker.victim import Victim
from fl_precode.defences import gradient_defence
from fl_precode.models import build_model
from images import first_images
from leakage_models import initialised, resnet18

logger = logging.getLogger("leakage")
PARTS = ("noise", "random", "starts", "defences", "solver", "resnet18")
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


def lenet(options: argparse.Namespace, start: str = "uniform", **settings: Any) -> tuple[Victim, Tensor, Tensor]:
    """DLG's LeNet, or another model, in float64, with images and labels."""
    _, images, labels, inputs = first_images(max(options.images, 1))
    spec = settings.get("model", "lenet")
    model = initialised(build_model(spec, inputs, seed=options.seed), start, options.seed)
    return Victim(model=model.double(), inputs=inputs, name=spec), images.double(), labels


def noise_of(jacobian: Jacobian, std: float, seed: int) -> Tensor:
    """Gaussian noise on the gradient."""
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(jacobian.columns, generator=generator, dtype=torch.float64)


def matching(of: Released, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``||gradient(image) - target||²`` and its derivative with respect to the image."""
    pixels = image.detach().requires_grad_(True)
    weights = {name: value.requires_grad_(True) for name, value in of.weights.items()}
    loss = of.loss(weights, pixels, of.noise)
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
    distance = (torch.cat([one.flatten() for one in found]) - target).square().sum()
    return distance.detach(), torch.autograd.grad(distance, pixels)[0]


def local_attack(of: Released, image: Tensor, target: Tensor, seen: Spectrum, iterations: int = 300) -> Row:
    """Matching from the truth on, by L-BFGS in coordinates in which J J^T is the unit matrix, so that it converges.

    No attack that anyone could run: it shows where the optimum near the truth lies.
    """
    scale = (seen.values + 1e-12 * seen.values[0]).rsqrt()
    back = seen.vectors * scale
    return search(of, image, target, lambda z: (back @ z).reshape(image.shape) + image, back, iterations)


def search(
    of: Released,
    truth: Tensor,
    target: Tensor,
    picture: Callable[[Tensor], Tensor],
    back: Tensor | None,
    iterations: int,
    start: Tensor | None = None,
) -> Row:
    """L-BFGS with a strong-Wolfe line search over z, ``picture(z)`` being the image."""
    z = (torch.zeros(truth.numel(), dtype=truth.dtype) if start is None else start.clone()).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [z], max_iter=iterations, max_eval=2 * iterations, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        distance, gradient = matching(of, picture(z.detach()), target)
        z.grad = gradient.flatten() if back is None else back.T @ gradient.flatten()
        return distance

    first, began = float(closure()), time.process_time()
    optimiser.step(closure)
    last = float(matching(of, picture(z.detach()), target)[0])
    error = (picture(z.detach()) - truth).square().mean().sqrt()
    return {"measured": float(error), "distance": [first, last], "calls": calls, "cpu": time.process_time() - began}


def predictions(jacobian: Jacobian, seen: Spectrum, change: Tensor) -> Row:
    """I2F with several dampings, I_lb, as RMSE."""
    product, root = jacobian.to_image(change), seen.unknowns**0.5
    found = {f"i2f_{d:g}": float(seen.influence(product, damping=d)) / root for d in (1e-12, 1e-9, 1e-6, 1e-3)}
    return {**found, "i_lb": lower_bound(jacobian, change, seen.largest) / root, "change": float(change.norm())}


def about(jacobian: Jacobian, seen: Spectrum, index: int) -> Row:
    return {
        "image": index, "norm": float(jacobian.gradient.norm()), "rank": seen.rank, "largest": seen.largest,
        "smallest": seen.gap[0], "unit_rmse": seen.expected_rmse(1.0),
    }  # fmt: skip


def noise_jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    victim, images, labels = lenet(options)

    def one(index: int) -> Iterator[Row]:
        of, image = released(victim, labels[index : index + 1]), images[index : index + 1]
        jacobian = Jacobian(of, image)
        seen = spectrum(jacobian)
        for std in (1e-5, 1e-4, 1e-3, 1e-2):
            change = noise_of(jacobian, std, index)
            found = local_attack(of, image, jacobian.gradient + change, seen)
            yield {"std": std, **about(jacobian, seen, index), **predictions(jacobian, seen, change), **found}

    for index in range(options.images):
        yield f"noise {index}", lambda index=index: one(index)


def random_jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    victim, images, labels = lenet(options)

    def one(index: int) -> Iterator[Row]:
        of, image = released(victim, labels[index : index + 1]), images[index : index + 1]
        jacobian = Jacobian(of, image)
        generator = torch.Generator().manual_seed(100 + index)
        start = torch.rand(image.numel(), generator=generator, dtype=torch.float64)
        target = jacobian.gradient + noise_of(jacobian, 1e-3, index)
        found = search(of, image, target, lambda z: z.reshape(image.shape), None, 3000, start)
        yield {"std": 1e-3, "image": index, **found}

    for index in range(options.images):
        yield f"random {index}", lambda index=index: one(index)


def starts_jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    cases = [("lenet", start) for start in ("uniform", "normal", "kaiming", "xavier", "default")]
    cases += [("lenet:activation=relu", "default"), ("lenet:activation=relu", "uniform")]

    def one(model: str, start: str, index: int) -> Iterator[Row]:
        victim, images, labels = lenet(options, start, model=model)
        of, image = released(victim, labels[index : index + 1]), images[index : index + 1]
        jacobian = Jacobian(of, image)
        seen = spectrum(jacobian)
        change = noise_of(jacobian, 1e-4, index)
        found = local_attack(of, image, jacobian.gradient + change, seen)
        row = {"model": model, "start": start, "std": 1e-4, **about(jacobian, seen, index)}
        yield {**row, **predictions(jacobian, seen, change), **found}

    for model, start in cases:
        for index in range(min(4, options.images)):
            yield f"{model} {start} {index}", lambda m=model, s=start, i=index: one(m, s, i)


def defences_jobs(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[Row]]]]:
    victim, images, labels = lenet(options)
    specs = ("prune:share=0.1", "prune:share=0.5", "prune:share=0.9", "quantise:bits=8", "sign", "clip:max_norm=1")

    def one(index: int) -> Iterator[Row]:
        of, image = released(victim, labels[index : index + 1]), images[index : index + 1]
        jacobian = Jacobian(of, image)
        seen = spectrum(jacobian)
        for spec in specs:
            defence = gradient_defence(spec)
            assert defence is not None
            change = defence_change(of, image, defence, generator=torch.Generator().manual_seed(index))
            found = local_attack(of, image, jacobian.gradient + change, seen)
            yield {"defence": spec, **about(jacobian, seen, index), **predictions(jacobian, seen, change), **found}

    for index in range(min(3, options.images)):
        yield f"defences {index}", lambda index=index: one(index)


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
    torch.manual_seed(options.seed)
    victim = Victim(model=resnet18(inputs.classes), inputs=inputs, name="resnet18")
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
