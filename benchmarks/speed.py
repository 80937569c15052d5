"""Seconds per iteration and candidate: our engine, a plain double-backward loop and, given a checkout, research code.

Same model, images, settings, iterations and threads, in one process, interleaved; medians over the repeats. The quality
reached stands beside the speed. Candidates are restarts of one victim ("same") or different victims of one round
("different"). The research code runs restarts one after another, so that its figure is per restart.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attacker.attacks.gradient_matching import GradientMatching
from attacker.engine import (
    BottleneckNoise,
    Descent,
    Draws,
    GradientObjective,
    Replay,
    TotalVariation,
    cosine_distance,
    first_candidates,
    trace,
)
from attacker.engine.loop import LoopProducts
from attacker.metrics import psnr
from attacker.victim import Victim
from fl_precode.models import build_model
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation, Protocol

CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10" / "cifar10_lossless_subset.npz"
INPUTS = InputSpec(
    channels=3, height=32, width=32, classes=10, mean=(0.49147, 0.48226, 0.44677), std=(0.24703, 0.24349, 0.26159)
)


@dataclass(frozen=True)
class Task:
    """One model and the images behind its observed gradients."""

    victim: Victim
    images: Tensor  # (n, 3, 32, 32) in [0, 1]
    labels: Tensor  # (n,)
    observations: list[Observation]


@dataclass(frozen=True)
class Run:
    """What one measurement gave."""

    seconds: float  # per iteration and candidate
    psnr: float  # mean, dB
    loss: float  # mean matching loss


def make_task(model: str, count: int) -> Task:
    """Gradients of the first CIFAR-10 images, or of the embedded photographs when the shared data is absent."""
    if CIFAR.exists():
        with np.load(CIFAR) as archive:
            pixels, classes = archive["train_images"][:count], archive["train_labels"][:count]
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).float() / 255
        labels = torch.from_numpy(np.asarray(classes).astype(np.int64))
    else:
        from fl_precode.data import load_data

        images, labels = load_data("photos").train.batch(range(count))
    victim = Victim(model=build_model(model, INPUTS, seed=0), inputs=INPUTS, name=model)
    named = dict(victim.model.named_parameters())
    weights = {name: value.detach().clone() for name, value in named.items()}
    observations = []
    for image, label in zip(images, labels, strict=True):
        loss = victim.loss(INPUTS.normalise(image[None]), label[None])
        update = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        observations.append(
            Observation(
                parameters=weights,
                buffers={},
                update=update,
                kind="gradient",
                batch_size=1,
                protocol=Protocol(),
                round=1,
                node="0",
            )  # fmt: skip
        )
    return Task(victim, images, labels, observations)


def quality(task: Task, inputs: Tensor, victims: int) -> float:
    """Mean PSNR of one reconstruction for each of the first victims, dB."""
    return float(psnr(INPUTS.denormalise(inputs).clamp(0, 1), task.images[:victims]).mean())


def ours(task: Task, iterations: int, *, victims: int, restarts: int) -> Run:
    """The attack as users call it."""
    # One restart starts where the plain loop does; several need different starts.
    attack = GradientMatching(iterations=iterations, restarts=restarts, start="grey" if restarts == 1 else "normal")
    began = time.perf_counter()
    results = attack(
        task.victim,
        task.observations[:victims],
        generator=torch.Generator().manual_seed(0),
        labels=[label[None] for label in task.labels[:victims]],
    )
    seconds = time.perf_counter() - began
    images = torch.cat([one.inputs for one in results if one.inputs is not None])
    losses = [one.matching_loss for one in results if one.matching_loss is not None]
    return Run(seconds / iterations / (victims * restarts), quality(task, images, victims), statistics.mean(losses))


def plain_loop(task: Task, iterations: int) -> Run:
    """One candidate by double backward over dense gradients."""
    seen = trace(task.victim)
    one = task.observations[0]
    products = LoopProducts(Replay(task.victim, one.parameters, one.buffers), [one.update])
    settings = GradientMatching()
    descent = Descent(iterations=iterations, learning_rate=settings.learning_rate, signed=settings.signed)
    assert not seen.latents
    draws = Draws.seeded(1, 1, torch.Generator().manual_seed(0))
    start = first_candidates("grey", INPUTS, 1, draws=draws, like=task.images)
    objective = GradientObjective(
        products=products,
        measure=cosine_distance,
        labels=task.labels[:1].reshape(1, 1, 1),
        noise=BottleneckNoise(draws=draws, batch=1, latents=()),
        weighted_priors=[(settings.total_variation, TotalVariation())],
    )
    began = time.perf_counter()
    found = descent.run(objective, start, project=INPUTS.clamp)
    seconds = time.perf_counter() - began
    return Run(seconds / iterations, quality(task, found.candidates[0, 0], 1), float(found.distances[0, 0]))


def research_code(task: Task, iterations: int, library: Any) -> Run:
    """One restart of invertinggradients with the settings of its command line."""
    config = {
        "signed": True, "boxed": True, "cost_fn": "sim", "indices": "def", "weights": "equal", "lr": 0.1,
        "optim": "adam", "restarts": 1, "max_iterations": iterations, "total_variation": 1e-4, "init": "randn",
        "filter": "none", "lr_decay": True, "scoring_choice": "loss",
    }  # fmt: skip
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (INPUTS.mean, INPUTS.std))
    torch.manual_seed(0)
    attack = library.GradientReconstructor(task.victim.model, (mean, std), config, num_images=1)
    observed = list(task.observations[0].update.values())
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        found, stats = attack.reconstruct(observed, task.labels[:1], img_shape=INPUTS.shape)
    seconds = time.perf_counter() - began
    return Run(seconds / iterations, quality(task, found, 1), float(stats["opt"]))


def measure(task: Task, options: argparse.Namespace, library: Any) -> dict[str, dict[str, float]]:
    """Every contender in turn, repeated; medians."""
    contenders: dict[str, Callable[[], Run]] = {"plain loop": lambda: plain_loop(task, options.iterations)}
    if library is not None:
        contenders["invertinggradients"] = lambda: research_code(task, options.iterations, library)
    for count in options.candidates:
        contenders[f"ours, {count} restarts"] = lambda n=count: ours(task, options.iterations, victims=1, restarts=n)
        if count > 1:
            contenders[f"ours, {count} victims"] = lambda n=count: ours(task, options.iterations, victims=n, restarts=1)
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, contender in contenders.items():
            runs[name].append(contender())
            print(f"  {name}: {runs[name][-1].seconds * 1e3:.3f} ms", file=sys.stderr)
    base = statistics.median(one.seconds for one in runs.get("invertinggradients", runs["plain loop"]))
    return {
        name: {
            "milliseconds": statistics.median(one.seconds for one in found) * 1e3,
            "least": min(one.seconds for one in found) * 1e3,
            "most": max(one.seconds for one in found) * 1e3,
            "times_faster": base / statistics.median(one.seconds for one in found),
            "psnr": found[-1].psnr,
            "matching_loss": found[-1].loss,
        }
        for name, found in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet", "mlp"])
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--invertinggradients", type=Path, help="a checkout of that repository")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    library = None
    if options.invertinggradients is not None:
        sys.path.insert(0, str(options.invertinggradients))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = importlib.import_module("inversefed")
    report = {}
    for model in options.models:
        print(model, file=sys.stderr)
        report[model] = measure(make_task(model, max(options.candidates)), options, library)
        for name, row in report[model].items():
            print(
                f"{model:6} {name:22} {row['milliseconds']:8.3f} ms ({row['least']:.3f} to {row['most']:.3f})  "
                f"{row['times_faster']:6.1f}x  PSNR {row['psnr']:5.1f} dB  loss {row['matching_loss']:.1e}"
            )
    settings = {"iterations": options.iterations, "repeats": options.repeats, "threads": options.threads}
    options.out.write_text(json.dumps({"settings": settings, "torch": torch.__version__, "models": report}, indent=2))


if __name__ == "__main__":
    main()
