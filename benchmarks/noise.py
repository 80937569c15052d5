"""What noise on the update does to analytic inversion, to refining, and to a search without a start.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/noise.py --out noise.json

DLG's LeNet with weights from U(-0.5, 0.5), one image for each update, Gaussian noise on each of its numbers, float32,
labels recovered by the attacks. PSNR in dB on clamped [0, 1] images, CPU seconds an image. What the JSON file already
holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attacker.experiments.published_nets import published
from attacker.simulate import observe
from fl_precode.attacks import build_attack
from fl_precode.defences.on_gradients import GaussianNoise
from fl_precode.metrics import psnr
from images import first_images

logger = logging.getLogger("noise")
ANALYTIC, PLAIN, REFINED = "layerwise-inversion", "inverting-gradients:iterations=600", "then-refine"
ATTACKS = (ANALYTIC, PLAIN, REFINED)


def attacked(net: str, attack: str, std: float, count: int, seed: int) -> dict[str, Any]:
    """One attack on the first images."""
    _, images, labels, inputs = first_images(count)
    victim = published(net, inputs)
    torch.manual_seed(seed)
    seen = []
    for index, one in enumerate(observe(victim, victim.inputs.normalise(images), labels, batch_size=1)):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        seen.append(replace(one, update=GaussianNoise(std=std)(one.update, generator=generator)) if std else one)
    began = time.process_time()
    found = build_attack(attack)(victim, seen, generator=torch.Generator().manual_seed(seed))
    seconds = (time.process_time() - began) / count
    values = []
    for result, image in zip(found, torch.split(images, 1), strict=True):
        made = torch.zeros_like(image) if result.inputs is None else victim.inputs.denormalise(result.inputs).float()
        values.append(round(min(float(psnr(made.clamp(0, 1), image)), 999.0), 2))
    losses, reasons = [one.matching_loss for one in found], [one.reason for one in found]
    return {"psnr": values, "matching_loss": losses, "reason": reasons, "cpu_seconds": seconds}


def tell(cells: dict[str, dict[str, Any]], stds: list[float], net: str, count: int, seed: int) -> None:
    """Means, and how far refining is below the better of the other two."""
    for std in stds:
        keys = [f"{net} | {std:g} | {attack} | {count} | {seed}" for attack in ATTACKS]
        if not all(key in cells for key in keys):
            continue
        analytic, plain, refined = (cells[key]["psnr"] for key in keys)
        mean = [sum(values) / len(values) for values in (analytic, plain, refined)]
        gains = [c - max(a, b) for a, b, c in zip(analytic, plain, refined, strict=True)]
        less, each = mean[2] - max(mean[:2]), [round(one, 1) for one in gains]
        logger.info("noise %g: analytic %.1f, plain %.1f, refined %.1f dB", std, *mean)
        logger.info("  refined less the better of the means: %.2f; of each image: %s", less, each)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="dlg-lenet", help="of attacker.experiments.published_nets")
    parser.add_argument("--images", type=int, default=8, help="the first of the training images")
    parser.add_argument("--stds", type=float, nargs="+", default=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    parser.add_argument("--seed", type=int, default=1, help="of noise and searches")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; taken up where it ends")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    cells: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for std in sorted(options.stds, reverse=True):
        for attack in ATTACKS:
            key = f"{options.net} | {std:g} | {attack} | {options.images} | {options.seed}"
            if key in cells:
                continue
            cells[key] = attacked(options.net, attack, std, options.images, options.seed)
            logger.info("%s %s %.2f s", key, cells[key]["psnr"], cells[key]["cpu_seconds"])
            part = options.out.with_suffix(".part")
            part.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
            part.replace(options.out)
    tell(cells, options.stds, options.net, options.images, options.seed)


if __name__ == "__main__":
    main()
