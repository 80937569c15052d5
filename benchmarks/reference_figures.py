"""Reference figures of PRECODE: an untrained MLP, ten 32x32 RGB images, with and without the bottleneck.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/reference_figures.py --out figures.json

Expected from the authors' notebook: mean SSIM .99969 without and .00450 with PRECODE. Also: first-layer inversion of
the defended model, which needs no optimiser. Training images 0 to 9 of CIFAR-10 where ../shared/data has them, else
`photos`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from attacker.attacks.gradient_matching.options import options_of
from attacker.simulate import observe
from fl_precode import Protocol, Victim
from fl_precode.attacks import PRESETS, Attack, FirstLayerInversion, Progress, Reconstruction
from fl_precode.defences.registry import apply_defence
from fl_precode.metrics import psnr, ssim, success_rate
from fl_precode.models import InputSpec, build_model

logger = logging.getLogger("reference_figures")

CIFAR10 = Path(__file__).resolve().parents[1] / "../shared/data/cifar10/cifar10_lossless_subset.npz"
THRESHOLD = 0.6


def first_images(count: int) -> tuple[str, Tensor, Tensor, InputSpec]:
    """Name of the data, images (count, 3, 32, 32) in [0, 1], labels (count,), input domain."""
    if not CIFAR10.exists():
        from fl_precode.data import load_data

        logger.info("%s is absent: using the embedded photos", CIFAR10)
        data = load_data("photos")
        images, labels = data.train.batch(list(range(count)))
        return "photos", images, labels, data.inputs
    with np.load(CIFAR10) as arrays:
        place = arrays["train_index"].tolist()
        order = [place.index(wanted) for wanted in range(count)]
        pixels, labels = arrays["train_images"][order], arrays["train_labels"][order]
    inputs = InputSpec(
        channels=3,
        height=32,
        width=32,
        classes=10,
        mean=(0.49147, 0.48226, 0.44677),
        std=(0.24703, 0.24349, 0.26159),
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return "cifar10", images, torch.from_numpy(labels).long(), inputs


def drawn(client: int) -> torch.Generator:
    """What a client's bottleneck draws from."""
    return torch.Generator().manual_seed(1000 + client)


def show(title: str) -> Progress:
    """A progress line on stderr."""
    began = time.perf_counter()

    def report(done: float, best: float | None) -> None:
        seconds = time.perf_counter() - began
        best_text = "" if best is None else f" best {best:.2e}"
        sys.stderr.write(f"\r{title}: {done:4.0%} {seconds:6.1f} s{best_text}")
        if done >= 1:
            sys.stderr.write("\n")

    return report


def figures(found: list[Reconstruction], images: Tensor, inputs: InputSpec, seconds: float) -> dict[str, Any]:
    """Figures of each image, their mean and the wall time."""
    if any(one.inputs is None for one in found):
        raise RuntimeError(f"an attack gave no image: {[one.reason for one in found if one.inputs is None]}")
    restored = inputs.denormalise(torch.cat([one.inputs for one in found if one.inputs is not None]))
    similarity = ssim(restored, images)
    normalised = [one.inputs[0] for one in found if one.inputs is not None]
    theirs = [_authors_ssim(one, inputs.normalise(image)) for one, image in zip(normalised, images, strict=True)]
    return {
        "ssim": similarity.tolist(),
        "ssim_mean": float(similarity.mean()),
        "authors_ssim": theirs,
        "authors_ssim_mean": sum(theirs) / len(theirs),
        "success_rate": success_rate(similarity, threshold=THRESHOLD),
        "psnr_db": [min(value, 999.0) for value in psnr(restored, images).tolist()],
        "matching_loss": [one.matching_loss for one in found],
        "outcomes": [one.outcome.name for one in found],
        "seconds": seconds,
    }


def _authors_ssim(image: Tensor, truth: Tensor) -> float:
    """SSIM as PRECODE's code computes it: on normalised images, not clamped, with scikit-image's old range of 2."""
    similarity: Callable[..., Any] = structural_similarity
    return float(similarity(image.numpy(), truth.numpy(), data_range=2.0, channel_axis=0))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything and collect the figures."""
    name, images, labels, inputs = first_images(options.images)
    matching = PRESETS["precode-paper"]
    if options.iterations:
        matching = matching.with_options(iterations=options.iterations)
    results: dict[str, Any] = {}
    for defence in ("none", "precode"):
        victim = Victim(
            model=apply_defence(defence, build_model(options.model, inputs, seed=0), inputs),
            inputs=inputs,
            name=options.model,
        )
        observations = observe(
            victim, inputs.normalise(images), labels, batch_size=1, protocol=Protocol(name="fedsgd"), noise=drawn
        )
        attacks: list[Attack] = [matching, FirstLayerInversion()]
        for attack in attacks:
            began = time.perf_counter()
            found = attack(
                victim,
                observations,
                generator=torch.Generator().manual_seed(options.seed),
                labels=[labels[i : i + 1] for i in range(len(images))],
                progress=show(f"{options.model} {defence}, {attack.name}"),
            )
            key = f"{defence} / {attack.name}"
            if all(one.inputs is None for one in found):
                results[key] = {"not applicable": found[0].reason}
            else:
                results[key] = figures(found, images, inputs, time.perf_counter() - began)
    settings = {
        "data": name,
        "images": options.images,
        "model": options.model,
        **{name: options_of(matching)[name] for name in ("iterations", "learning_rate", "total_variation")},
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return {"settings": settings, "results": results}


def table(results: dict[str, Any], write: Callable[[str], object]) -> None:
    """One paragraph for each defence and attack."""
    for key, value in results.items():
        if "not applicable" in value:
            write(f"{key}: not applicable, {value['not applicable']}\n")
            continue
        losses = [loss for loss in value["matching_loss"] if loss is not None]
        distance = f", cosine distance {min(losses):.2e} to {max(losses):.2e}" if losses else ""
        means = f"mean SSIM {value['ssim_mean']:.5f}, in the authors' convention {value['authors_ssim_mean']:.5f}"
        write(f"{key}: {means}, {value['seconds']:.1f} s{distance}\n")
        write(f"  SSIM of each: {' '.join(f'{one:.5f}' for one in value['ssim'])}\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=0, help="optimiser steps; 0 = 7,000 as published")
    parser.add_argument("--images", type=int, default=10, help="victims, the first of the training set")
    parser.add_argument("--model", default="mlp", help="model spec")
    parser.add_argument("--seed", type=int, default=0, help="seed of the attack")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    record = measure(options)
    table(record["results"], sys.stdout.write)
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
