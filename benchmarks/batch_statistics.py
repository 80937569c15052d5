"""What running statistics that clients send back add to an attack: with them, without, and with nothing else.

    OMP_NUM_THREADS=1 python benchmarks/batch_statistics.py --out docs/results/batch-statistics.json

One FedAvg step in training mode (SGD, learning rate .01, momentum of the layers .1) on consecutive images; labels are
granted to all searches alike. Reconstructed images are those with an SSIM of .6 or more.

search     The searches of `VARIANTS` on each model and batch, each with --iterations, or for --seconds; the one that
           needs no gradient makes six times as many.
spectrum   Singular values of the statistics' derivative by the pixels at the true batch: directions of the images that
           statistics as exact as float32 buffers show at all.

Rows that are in --out already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacker.experiments.published_nets import Block, model_of
from attacker.objectives.returned_statistics import returned_prior
from attacker.optim.deadline import within
from attacker.simulate import observe_training
from fl_precode import Observation, Protocol, Victim
from fl_precode.attacks import build_attack
from fl_precode.metrics import match_batch, psnr, ssim
from fl_precode.models.input_spec import InputSpec
from images import first_images

logger = logging.getLogger("batch_statistics")

Row = dict[str, Any]

_MATCHING = "inverting-gradients:iterations={iterations},learning_rate={rate},total_variation=0.001"
VARIANTS = {
    "without": _MATCHING,
    "prior": _MATCHING + ",batch_norm={weight},batch_norm_of=returned",
    "normalised": _MATCHING + ",normalise_by=returned",
    "both": _MATCHING + ",normalise_by=returned,batch_norm={weight},batch_norm_of=returned",
    "running": _MATCHING + ",batch_norm={weight}",
    "only": "statistics-only:iterations={alone},total_variation=0.0001",
}
RECONSTRUCTED = 0.6
SEEN_ABOVE = 1e-5
"""Singular values, of standard deviations by a pixel of the normalised scale, that rounding of about 1e-6 leaves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("search", "spectrum"), default=["search"])
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet18-16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument(
        "--variants", nargs="+", choices=tuple(VARIANTS), default=["without", "prior", "normalised", "both", "only"]
    )
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--weight", type=float, default=1.0, help="of the prior beside the distance")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which a search gives what it has")
    parser.add_argument("--first", type=int, default=0, help="first image")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    known = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    done = {json.dumps(row["case"], sort_keys=True) for row in known["rows"]}
    for case, measure in cases(options):
        if json.dumps(case, sort_keys=True) in done:
            continue
        row = {"case": case, **measure()}
        logger.info("%s", json.dumps(row))
        known["rows"].append(row)
        known["measured"] = date.today().isoformat()
        options.out.write_text(json.dumps(known, indent=1) + "\n")


def cases(options: argparse.Namespace) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """What is to be measured, by what names it."""
    for model in options.models:
        for batch in options.batches:
            where = {"model": model, "batch": batch, "first": options.first}
            if "spectrum" in options.parts:
                yield {"part": "spectrum", **where}, lambda m=model, b=batch: spectrum(m, b, options.first)
            for variant in options.variants if "search" in options.parts else ():
                spec = VARIANTS[variant].format(
                    iterations=options.iterations,
                    alone=6 * options.iterations,
                    rate=options.rate,
                    weight=options.weight,
                )
                case = {"part": "search", **where, "variant": variant, "attack": spec, "seconds": options.seconds}
                yield case, lambda m=model, b=batch, s=spec: search(m, b, options.first, s, options.seconds)


def client(
    model: str, batch: int, first: int, dtype: torch.dtype = torch.float32
) -> tuple[Victim, Tensor, Observation]:
    """The victim, the true images in [0, 1], and what a client sends after one step on them."""
    _, images, labels, inputs = first_images(first + batch)
    images, labels = images[first:].to(dtype), labels[first:]
    net = network(model, inputs).to(dtype).eval()
    victim = Victim(model=net, inputs=inputs, name=model)
    protocol = Protocol(name="fedavg", local_steps=1, learning_rate=0.01, batch_size=batch, batch_norm="batch")
    seen = observe_training(victim, [(inputs.normalise(images), labels)], batch_size=batch, protocol=protocol)
    return victim, images, seen


def network(model: str, inputs: InputSpec) -> nn.Module:
    """A model of the factory or ``resnet18``, untrained; ``resnet18-N`` is as deep, with N to 8 N channels."""
    if not model.startswith("resnet18-"):
        return model_of(model, inputs, start="default", seed=0)
    torch.manual_seed(0)
    before = first = int(model.partition("-")[2])
    layers: list[nn.Module] = [nn.Conv2d(inputs.channels, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
    for stage in range(4):
        after = first * 2**stage
        layers += [Block(before, after, 1 if stage == 0 else 2), Block(after, after, 1)]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, inputs.classes))


def search(model: str, batch: int, first: int, spec: str, seconds: float) -> Row:
    """One attack on one batch."""
    victim, images, seen = client(model, batch, first)
    _, _, labels, _ = first_images(first + batch)
    began = time.process_time()
    with within(seconds):
        (found,) = build_attack(spec)(
            victim, [seen], generator=torch.Generator().manual_seed(0), labels=[labels[first:]]
        )
    used = time.process_time() - began
    if found.inputs is None:
        return {"outcome": str(found.outcome), "reason": str(found.reason)}
    pixels = victim.inputs.denormalise(found.inputs).clamp(0, 1)
    pixels = pixels[match_batch(pixels, images)]
    similar = [float(value) for value in ssim(pixels, images)]
    with torch.no_grad():
        missed = float(returned_prior(victim, [seen])(found.inputs[None, None])[0, 0]) ** 0.5
    return {
        "psnr": [round(float(value), 2) for value in psnr(pixels, images)],
        "ssim": [round(value, 3) for value in similar],
        "came_back": sum(value >= RECONSTRUCTED for value in similar),
        "distance": found.matching_loss,
        "statistics_missed": missed,
        "iterations": found.iterations,
        "cpu_seconds": round(used, 1),
    }


def spectrum(model: str, batch: int, first: int) -> Row:
    """How many directions of the images the statistics determine, to first order, at the true batch."""
    victim, images, seen = client(model, batch, first, torch.float64)
    prior = returned_prior(victim, [seen])
    x = victim.inputs.normalise(images)

    began = time.process_time()
    moved = x[None].clone().requires_grad_()
    residual = prior.residuals(0, moved)[0]
    rows = [torch.autograd.grad(value, moved, retain_graph=True)[0].flatten() for value in residual]
    derivative = torch.stack(rows)
    # The residuals are weighted so that their squares sum to a mean: each number by itself counts here.
    singular = torch.linalg.svdvals(derivative * len(residual) ** 0.5)
    return {
        "numbers": len(residual),
        "pixels": x.numel(),
        "seen": int((singular > SEEN_ABOVE).sum()),
        "largest": float(singular[0]),
        "median": float(singular.median()),
        "smallest": float(singular[-1]),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


if __name__ == "__main__":
    main()
