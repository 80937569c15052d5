"""What adaptive attacks reach behind a defence, beside the plain attack with and without it.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/adaptive.py --out adaptive.json

One image for each update, labels recovered by the attacks. SSIM (7 x 7 window) and PSNR in dB on clamped [0, 1] images,
mean squared error of a bottleneck's noise where an attack says what it takes it for, CPU seconds of this process. The
first training images of CIFAR-10 where ../shared/data has them, else of `photos`.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from attacker.audit.record.counting import beats
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD
from attacker.audit.truth.base import mean_of
from attacker.audit.truth.best_guess import Guesses
from attacker.simulate import observe
from fl_precode import Observation, Protocol, Victim
from fl_precode.attacks import Reconstruction, build_attack
from fl_precode.defences.registry import apply_defence, gradient_defence, perturbation_generator
from fl_precode.metrics import psnr, ssim
from fl_precode.models import build_model
from fl_precode.models.input_spec import InputSpec
from fl_precode.randomness.seeding import seeded
from label_recovery import load

# Its weight has to suit the model (at 1e-6 a search does not reconstruct even the undefended ReLU LeNet).
TOTAL_VARIATION = {"lenet:init=uniform": 1e-6, "lenet": 1e-6, "lenet:activation=relu": 0.1, "mlp": 1e-6}
SEARCHES = ("inverting-gradients", "ignore", "noise-restoring", "noise-recovery")
logger = logging.getLogger("adaptive")


def sent(victim: Victim, x: Tensor, y: Tensor, node: str, defence: str) -> Observation:
    """The gradient that a client with the batch (x, y) would send: dropout is active, noise is the client's own."""
    protocol = Protocol(name="fedsgd", local_steps=1, batch_size=len(x), defence=defence)
    victim.model.train()
    with seeded(int(node)):
        (seen,) = observe(victim, x, y, batch_size=len(x), protocol=protocol, noise=lambda _client: drawn(int(node)))
    chain = gradient_defence(defence)
    update = seen.update
    if chain is not None:
        generator = perturbation_generator("adaptive", node)
        update = chain(update, generator=generator, model=victim.model, batch=(x, y))
    victim.model.eval()
    return replace(seen, update=update, node=node)


def drawn(seed: int) -> torch.Generator:
    """What a client's bottlenecks draw from."""
    return torch.Generator().manual_seed(seed)


def attacked(model: str, defence: str, spec: str, images: Tensor, y: Tensor, inputs: InputSpec) -> dict[str, Any]:
    """One row: all images by one attack."""
    built = apply_defence(defence, build_model(model, inputs, seed=0), inputs, seed=0)
    victim = Victim(model=built, inputs=inputs, name=model)
    x = inputs.normalise(images)
    seen = [sent(victim, x[i : i + 1], y[i : i + 1], str(i), defence) for i in range(len(x))]
    began = time.process_time()
    found = build_attack(spec)(victim, seen, generator=torch.Generator().manual_seed(0))
    seconds = time.process_time() - began
    guesses = guessed(images, y)
    pictures = [None if one.inputs is None else inputs.denormalise(one.inputs).clamp(0, 1) for one in found]
    return {
        "model": model,
        "defence": defence,
        "attack": spec,
        "ssim": [
            None if one is None else round(float(ssim(one, images[i : i + 1])), 3) for i, one in enumerate(pictures)
        ],
        "guess_ssim": [round(one, 3) for one in guesses],
        "psnr": [
            None if one is None else round(float(psnr(one, images[i : i + 1])), 1) for i, one in enumerate(pictures)
        ],
        "noise_mse": [noise_error(one, i) for i, one in enumerate(found)] if "precode" in defence else [],
        "matching_loss": [one.matching_loss for one in found],
        "reasons": sorted({one.reason for one in found if one.reason}),
        "cpu_seconds": round(seconds, 1),
    }


class Others:
    """What a guess may be made of: the images at hand, which copies are told from."""

    def __init__(self, images: Tensor, y: Tensor) -> None:
        self.mean_image = mean_of([images])
        self._images, self._y = images, y

    def of_class(self, label: int) -> Tensor:
        """Those of a class."""
        return self._images[self._y == label]


def guessed(images: Tensor, y: Tensor) -> list[float]:
    """SSIM of the best guess at each image without its update."""
    return [1.0 if one is None else one.ssim for one in Guesses(Others(images, y)).at(images, y)]


def noise_error(found: Reconstruction, node: int) -> float | None:
    """Mean squared error of the one bottleneck's noise, None where the attack does not say it or there are several."""
    if len(found.noise) != 1:
        return None
    drawn = torch.randn(found.noise[0].shape, generator=torch.Generator().manual_seed(node))
    return float((found.noise[0] - drawn).square().mean())


def cases(iterations: int) -> list[tuple[str, str, str]]:
    """Model, defence and attack of each row."""
    rows = []
    for model, weight in TOTAL_VARIATION.items():
        search = f"iterations={iterations},total_variation={weight:g}"
        rows.append((model, "none", f"inverting-gradients:{search}"))
        rows += [(model, "precode", f"{name}:{search}") for name in SEARCHES]
        rows.append((model, "precode", "through-bottleneck"))
    return [*rows, ("mlp", "none", "first-layer"), ("mlp", "precode", "first-layer")]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of markdown; an image counts as reconstructed as in an audit (`attacker.audit.record.counting`)."""
    yield "| model | defence | attack | mean SSIM | reconstructed | mean PSNR | largest error of the noise | CPU s |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        found = [value for value in row["ssim"] if value is not None]
        levels = [value for value in row["psnr"] if value is not None]
        errors = [value for value in row["noise_mse"] if value is not None]
        cells = (
            row["model"],
            row["defence"],
            f"`{row['attack']}`",
            f"{mean(found):.2f}" if found else "does not apply",
            f"{back(row)} of {len(row['ssim'])}",
            f"{mean(levels):.1f}" if levels else "–",
            f"{max(errors):.1e}" if errors else "–",
            f"{row['cpu_seconds']:.0f}",
        )
        yield f"| {' | '.join(cells)} |"


def back(row: dict[str, Any]) -> int:
    """Images that were reconstructed."""
    return sum(
        value is not None and beats(value, guess, SUCCESS_THRESHOLD)
        for value, guess in zip(row["ssim"], row["guess_ssim"], strict=True)
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=1_000)
    parser.add_argument("--case", nargs=3, action="append", metavar=("MODEL", "DEFENCE", "ATTACK"), default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="markdown file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    name, images, y, inputs = load(options.images)
    rows = []
    for model, defence, spec in options.case or cases(options.iterations):
        rows.append(attacked(model, defence, spec, images, y, inputs))
        print(json.dumps(rows[-1]), flush=True)  # noqa: T201
        if options.out is not None:
            options.out.write_text(
                json.dumps({"data": name, "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
            )
    if options.table is not None:
        options.table.write_text("\n".join(table(rows)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
