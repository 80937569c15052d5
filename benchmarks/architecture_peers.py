"""Other people's code on victims of the map, beside ours: the same weights, image and settings, equal CPU time.

    OMP_NUM_THREADS=1 python -m benchmarks.architecture_peers --out docs/results/architectures.json --breaching CHECKOUT

One photograph, one gradient; labels are granted to all, and each makes as many iterations as its CPU seconds allow by
what a few of them took. Rows that stand in --out are not measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from attacker.simulate import observe
from attacker.victim import Victim
from benchmarks.architectures import CLASSES, ROWS, SEED, SMALL
from benchmarks.peers import Breaching, load
from benchmarks.transformers import photographs
from fl_precode import Observation, Protocol
from fl_precode.attacks import build_attack
from fl_precode.metrics import psnr, ssim
from fl_precode.models import InputSpec, build_model

logger = logging.getLogger("architecture_peers")

VICTIMS: Final = ("lenet", "resnet18 running", "resnet18 batch-norm")
WEIGHTS: Final = {"lenet": "1e-6", "resnet18 running": "1e-4", "resnet18 batch-norm": "1e-4"}
"""Of total variation, for all alike."""

TRIED: Final = 5
"""Iterations by which the time of one is estimated."""

MOST: Final = 4000
"""Iterations at most."""

Attack = Callable[[int], Tensor]


def victim_of(row: str) -> tuple[Victim, Tensor, Tensor, Observation]:
    """The model in evaluation mode, a normalised image, its label, and the gradient that its client sends."""
    own = ROWS[row]
    (image,) = photographs(1)
    pixels = F.interpolate(image[None], size=(SMALL, SMALL), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (tuple(values.tolist()) for values in (pixels.mean(dim=(0, 2, 3)), pixels.std(dim=(0, 2, 3))))
    inputs = InputSpec(channels=3, height=SMALL, width=SMALL, classes=CLASSES, mean=mean, std=std)
    victim = Victim(model=build_model(own.model, inputs, seed=SEED), inputs=inputs, name=row)
    before = {name: value.clone() for name, value in victim.model.state_dict().items()}
    victim.model.train(own.mode == "batch")
    x, label = inputs.normalise(pixels), torch.tensor([0])
    mode = "batch" if own.mode == "batch" else "buffers"
    (seen,) = observe(victim, x, label, batch_size=1, protocol=Protocol(name="fedsgd", batch_norm=mode))
    victim.model.load_state_dict(before)
    victim.model.eval()
    return victim, x, label, seen


def contenders(row: str, options: argparse.Namespace) -> Iterator[tuple[str, str, Attack]]:
    """Whose code, which attack, and what runs it with a number of iterations."""
    victim, x, label, seen = victim_of(row)
    training = ROWS[row].mode == "batch" and row != "lenet"

    def spec(iterations: int) -> str:
        return (
            f"inverting-gradients:iterations={iterations},learning_rate=0.1,restarts=1,total_variation={WEIGHTS[row]}"
        )

    def ours(iterations: int) -> Tensor:
        generator = torch.Generator().manual_seed(SEED)
        (found,) = build_attack(spec(iterations))(victim, [seen], generator=generator, labels=[label])
        return victim.inputs.clamp(torch.zeros_like(x) if found.inputs is None else found.inputs)

    yield "ours", "Inverting Gradients", ours
    if options.breaching is not None:
        breaching = Breaching(load(options.breaching, Breaching.package), training=training)
        yield (
            "breaching",
            "Inverting Gradients",
            lambda count: breaching.reconstruct(victim, seen.update, label, build_attack(spec(count))),  # type: ignore[arg-type]
        )


def measured(row: str, code: str, attack: str, run: Attack, seconds: float) -> dict[str, Any]:
    """One attack for about as many CPU seconds."""

    def took(iterations: int) -> float:
        torch.manual_seed(SEED)
        began = time.process_time()
        run(iterations)
        return time.process_time() - began

    took(1)  # what is done once, such as the choice of a way to compute gradients
    short, longer = took(TRIED), took(3 * TRIED)
    each = max((longer - short) / (2 * TRIED), longer / (12 * TRIED))
    iterations = max(TRIED, min(MOST, int(seconds / each)))
    torch.manual_seed(SEED)
    began = time.process_time()
    found = run(iterations)
    used = time.process_time() - began
    victim, x, _, _ = victim_of(row)
    truth = victim.inputs.denormalise(x)
    pixels = victim.inputs.denormalise(found).clamp(0, 1)
    plain = truth.mean(dim=(2, 3), keepdim=True).expand_as(truth)
    return {
        "row": row,
        "code": code,
        "attack": attack,
        "iterations": iterations,
        "cpu_seconds": round(used, 1),
        "ssim": round(float(ssim(pixels, truth)), 4),
        "psnr": round(float(psnr(pixels, truth)), 2),
        "guess_ssim": round(float(ssim(plain, truth)), 4),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--breaching", type=Path, help="a checkout of that repository")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--seconds", type=float, default=30.0, help="of each attack, CPU")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the map")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    content = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    found = content.setdefault("peers", {})
    for row in options.victims:
        for code, attack, run in contenders(row, options):
            if f"{row} | {code}" not in found:
                found[f"{row} | {code}"] = measured(row, code, attack, run, options.seconds)
                logger.info("%s", found[f"{row} | {code}"])
                options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
