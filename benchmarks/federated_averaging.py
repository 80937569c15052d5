"""Attacks on locally trained weights: cost against the number of local steps, and what is reconstructed.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/federated_averaging.py --out fedavg.json

First CPU milliseconds of one measurement with its derivative (one candidate), for each replay of the client's work and
number of steps. Then attacks with granted labels and the same iterations, by signed Adam on the cosine distance (or by
L-BFGS on the squared one, for ours), on the same updates: the client cycles through its images in a fixed order by
mini-batches of half of them, which "unrolled" and, given a checkout, the FedAvgReconstructor of invertinggradients
assume too. With ``--shuffled`` it shuffles before each pass, as clients do, and both assume the wrong batches. CIFAR-10
images where ../shared/data has them, else photographs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attacker.attacks.gradient_matching.options import options_of
from attacker.gradients.distances import cosine_distance
from attacker.gradients.fedavg.surrogate import surrogate_products
from attacker.gradients.fedavg.unrolled_sgd import LocalTrainingProducts
from attacker.gradients.observed import observed_gradient
from attacker.gradients.one_step import gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.simulate import observe_training
from fl_precode import Victim
from fl_precode.attacks import PRESETS
from fl_precode.metrics import match_batch, psnr, ssim
from fl_precode.models import build_model
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation, Protocol

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10" / "cifar10_lossless_subset.npz"
INPUTS = InputSpec(
    channels=3, height=32, width=32, classes=10, mean=(0.49147, 0.48226, 0.44677), std=(0.24703, 0.24349, 0.26159)
)
REPLAYS = ("one-gradient", "surrogate", "unrolled")
TOTAL_VARIATION = float(options_of(PRESETS["inverting-gradients"])["total_variation"])


def photographs(count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) in [0, 1] and labels (count,)."""
    if not CIFAR.exists():
        from fl_precode.data import load_data

        return load_data("photos").train.batch(range(count))
    with np.load(CIFAR) as archive:
        pixels, classes = archive["train_images"][:count], archive["train_labels"][:count]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(classes).long()


def passes(images: int, size: int, *, shuffled: bool) -> Iterator[list[int]]:
    """Mini-batches without end."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(images) if shuffled else np.arange(images)
        yield from (order[first : first + size].tolist() for first in range(0, images, size))


def client_update(
    victim: Victim, images: Tensor, labels: Tensor, steps: int, options: argparse.Namespace
) -> Observation:
    """What the server sees of a client that trains on images in [0, 1]."""
    size, rate = max(1, len(images) // 2), options.learning_rate
    drawn = passes(len(images), size, shuffled=options.shuffled)
    batches = [(INPUTS.normalise(images[own]), labels[own]) for own, _ in zip(drawn, range(steps), strict=False)]
    protocol = Protocol(name="fedavg", local_steps=steps, batch_size=size, learning_rate=rate, momentum=0.0)
    return observe_training(victim, batches, batch_size=len(images), protocol=protocol)


def cost(victim: Victim, observation: Observation, replay: str, labels: Tensor, repeats: int) -> float:
    """Least CPU milliseconds of one distance and its gradient with respect to one candidate."""
    seen, sent = trace(victim), Replay(victim, observation.parameters, {})
    if replay == "unrolled":
        products = LocalTrainingProducts(sent, [observation], vmapped=False)
    elif replay == "surrogate":
        products = surrogate_products(sent, [observation], seen)
    else:
        products = gradient_products(sent, [observed_gradient(observation)], seen, batch_size=len(labels))
    candidates = torch.randn(1, 1, len(labels), *INPUTS.shape).requires_grad_(True)
    taken = []
    for _ in range(repeats + 1):  # the first warms up
        began = time.process_time()
        torch.autograd.grad(cosine_distance(products(candidates, labels)).sum(), candidates)
        taken.append(time.process_time() - began)
    return min(taken[1:]) * 1e3


def ours(
    victim: Victim, observation: Observation, labels: Tensor, replay: str, options: argparse.Namespace
) -> tuple[Tensor, Any]:
    preset = PRESETS["idlg" if options.optimiser == "l-bfgs" else "inverting-gradients"]
    attack = preset.with_options(iterations=options.iterations, local_training=replay)
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(0), labels=[labels])
    if found.inputs is None:
        raise RuntimeError(f"{replay}: {found.outcome}: {found.reason}")
    return found.inputs, found.matching_loss


def research_code(
    victim: Victim, observation: Observation, labels: Tensor, iterations: int, library: Any
) -> tuple[Tensor, Any]:
    """One restart of invertinggradients, with the same settings."""
    config = {
        "signed": True, "boxed": True, "cost_fn": "sim", "indices": "def", "weights": "equal", "lr": 0.1,
        "optim": "adam", "restarts": 1, "max_iterations": iterations, "total_variation": TOTAL_VARIATION,
        "init": "randn", "filter": "none", "lr_decay": True, "scoring_choice": "loss",
    }  # fmt: skip
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (INPUTS.mean, INPUTS.std))
    torch.manual_seed(0)
    protocol = observation.protocol
    attack = library.FedAvgReconstructor(
        deepcopy(victim.model),
        (mean, std),
        protocol.local_steps,
        protocol.learning_rate,
        config,
        num_images=len(labels),
        use_updates=True,
        batch_size=protocol.batch_size,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        found, _ = attack.reconstruct(list(observation.update.values()), labels, img_shape=INPUTS.shape)
    return found, None  # its own score at the end takes other mini-batches than its loss


def figures(run: Callable[[], tuple[Tensor, Any]], truth: Tensor, iterations: int) -> dict[str, Any]:
    began = time.process_time()
    found, loss = run()
    seconds = time.process_time() - began
    images = INPUTS.denormalise(found).clamp(0, 1)
    images = images[match_batch(images.nan_to_num(nan=0.5), truth)].nan_to_num(nan=0.5)
    return {
        "psnr": float(psnr(images, truth).mean()),
        "ssim": float(ssim(images, truth).mean()),
        "matching_loss": loss,
        "cpu_seconds": seconds,
        "milliseconds_per_iteration": seconds / iterations * 1e3,
    }


def costs(model: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Replay to number of steps to milliseconds."""
    victim = Victim(model=build_model(model, INPUTS, seed=0), inputs=INPUTS, name=model)
    images, labels = photographs(max(options.images))
    table: dict[str, dict[str, float]] = {replay: {} for replay in REPLAYS}
    for steps in options.cost_steps:
        observation = client_update(victim, images, labels, steps, options)
        for replay, row in table.items():
            row[str(steps)] = cost(victim, observation, replay, labels, options.repeats)
    for replay, row in table.items():
        print(f"{model:20} {replay:13} " + "  ".join(f"T={t}: {ms:7.1f} ms" for t, ms in row.items()), flush=True)
    return table


def attacks(model: str, options: argparse.Namespace, library: Any) -> list[dict[str, Any]]:
    """One row for each number of images and steps, and contender."""
    victim = Victim(model=build_model(model, INPUTS, seed=0), inputs=INPUTS, name=model)
    rows = []
    for count in options.images:
        images, labels = photographs(count)
        for steps in options.steps:
            seen, n = client_update(victim, images, labels, steps, options), options.iterations
            contenders: dict[str, Callable[[], tuple[Tensor, Any]]] = {
                replay: partial(ours, victim, seen, labels, replay, options) for replay in REPLAYS
            }
            if library is not None:
                contenders["invertinggradients"] = partial(research_code, victim, seen, labels, n, library)
            for name, run in contenders.items():
                row = {"model": model, "images": count, "steps": steps, "attack": name, **figures(run, images, n)}
                rows.append(row)
                loss = "" if row["matching_loss"] is None else f"loss {row['matching_loss']:.1e}"
                print(
                    f"{model:20} {count} images T={steps:<3} {name:18} {row['psnr']:5.1f} dB SSIM {row['ssim']:.2f} "
                    f"{row['cpu_seconds']:6.1f} CPU s {loss}",
                    flush=True,
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet:init=uniform", "lenet", "mlp"])
    parser.add_argument("--images", nargs="+", type=int, default=[4, 8], help="images of the client")
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 16], help="local steps of the attacked client")
    parser.add_argument("--cost-steps", nargs="+", type=int, default=[1, 4, 16], help="local steps to time")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of the client")
    parser.add_argument("--shuffled", action="store_true", help="the client shuffles before each pass")
    parser.add_argument("--iterations", type=int, default=300, help="of every attack")
    parser.add_argument(
        "--optimiser", choices=["adam", "l-bfgs"], default="adam", help="of our attacks: settings of IG, or of iDLG"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of every timing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--invertinggradients", type=Path, help="a checkout of that repository (needs six)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library = None
    if options.invertinggradients is not None:
        sys.path.insert(0, str(options.invertinggradients))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = importlib.import_module("inversefed")
    report = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "torch": torch.__version__,
        "costs": {model: costs(model, options) for model in options.models},
        "attacks": [row for model in options.models for row in attacks(model, options, library)],
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
