"""What activation-span reconstructs of batches, beside SPEAR and Inverting Gradients at equal time.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.activation_span --out docs/results/activation-span.json \
        --table docs/results/activation-span.md

Perceptrons and transformers at 32x32 see training images of CIFAR-10 that follow each other (`images.first_images`, or
the embedded photographs), those at 224x224 photographs of scikit-image and scikit-learn (`transformers.photographs`);
one float32 gradient each. CPU seconds of this process, refusal's check included; the other attacks get as many seconds
of the clock as activation-span took. SPEAR attacks the same perceptron with ReLU as well (``relu``). Rows that stand in
the file are not measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import math
import platform
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import vit_b_16, vit_b_32
from torchvision.models.vision_transformer import VisionTransformer

from attacker.optim.deadline import within
from attacker.simulate import observe
from benchmarks.images import INPUTS, first_images
from benchmarks.page_tables import write_between
from benchmarks.training import cifar10, trained
from benchmarks.transformers import IMAGENET, photographs
from fl_precode import Protocol, Victim
from fl_precode.attacks import build_attack
from fl_precode.metrics import match_batch, psnr, ssim
from fl_precode.models.input_spec import InputSpec

logger = logging.getLogger("activation-span")

GOOD_PSNR, GOOD_SSIM = 40.0, 0.6
SKIP = 4096
"""Training images that models are not trained on: the attacked ones are the first."""

ACTIVATIONS = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
}


def two_layers(inputs: InputSpec, *, activation: str) -> nn.Module:
    """d-1024-1024-C."""
    act = ACTIVATIONS[activation]
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(math.prod(inputs.shape), 1024),
            act1=act(),
            fc2=nn.Linear(1024, 1024),
            act2=act(),
            classifier=nn.Linear(1024, inputs.classes),
        )
    )


sigmoid, tanh, gelu, silu, softplus, relu = (partial(two_layers, activation=name) for name in ACTIVATIONS)


def small_transformer(inputs: InputSpec, *, patch: int) -> nn.Module:
    """torchvision's transformer in the size of CIFAR-10: width 192, four blocks, three heads."""
    return with_open_head(
        VisionTransformer(
            image_size=inputs.height,
            patch_size=patch,
            num_layers=4,
            num_heads=3,
            hidden_dim=192,
            mlp_dim=768,
            num_classes=inputs.classes,
        )
    )


def deployed(inputs: InputSpec, *, build: Callable[..., VisionTransformer]) -> nn.Module:
    """torchvision's for ImageNet, untrained."""
    return with_open_head(build(num_classes=inputs.classes))


def with_open_head(model: VisionTransformer) -> nn.Module:
    """torchvision starts the head at zero, and no gradient would pass."""
    head = model.heads.head
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=0.02)
    return model


vit_patch_8, vit_patch_4 = (partial(small_transformer, patch=patch) for patch in (8, 4))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and what it is attacked with.

    Attributes:
        build: The model of an input domain.
        sizes: Images of a batch.
        steps: Steps of training.
        photographs: Whether it sees photographs at 224x224.
    """

    build: Callable[..., nn.Module]
    sizes: tuple[int, ...]
    steps: int = 0
    photographs: bool = False


PERCEPTRONS = (16, 64, 128)
CASES = {
    "sigmoid": Case(build=sigmoid, sizes=PERCEPTRONS),
    "tanh": Case(build=tanh, sizes=PERCEPTRONS),
    "gelu": Case(build=gelu, sizes=PERCEPTRONS),
    "relu": Case(build=relu, sizes=PERCEPTRONS),
    "vit_patch_8": Case(build=vit_patch_8, sizes=(4, 8, 10, 11, 32), steps=300),
    "vit_patch_4": Case(build=vit_patch_4, sizes=(1, 2, 8, 32), steps=300),
    "vit_b_32": Case(build=partial(deployed, build=vit_b_32), sizes=(2, 4, 8), photographs=True),
    "vit_b_16": Case(build=partial(deployed, build=vit_b_16), sizes=(2,), photographs=True),
}


def attacked(spec: str, victim: Victim, x: Tensor, y: Tensor, images: Tensor, seconds: float) -> dict[str, Any]:
    """One batch: how many of its images were reconstructed, how well, and what it took."""
    (observation,) = observe(victim, x, y, batch_size=len(x), protocol=Protocol(name="fedsgd"))
    began, clock = time.process_time(), time.monotonic()
    with within(seconds):
        (found,) = build_attack(spec)(victim, [observation], generator=torch.Generator().manual_seed(0))
    row: dict[str, Any] = {
        "cpu_seconds": round(time.process_time() - began, 2),
        "seconds": round(time.monotonic() - clock, 2),
        "outcome": found.outcome.value,
        "reason": str(found.reason),
        "good_psnr": 0,
        "good_ssim": 0,
    }
    if found.inputs is None or len(found.inputs) != len(images):
        return row
    restored = victim.inputs.denormalise(found.inputs).clamp(0, 1)
    restored = restored[match_batch(restored.nan_to_num(nan=0.5), images)]
    there = ~restored.flatten(1).isnan().any(dim=1)
    values = psnr(restored[there], images[there]).tolist() if bool(there.any()) else []
    alike = ssim(restored[there], images[there]).tolist() if bool(there.any()) else []
    return row | {
        "found": int(there.sum()),
        "good_psnr": sum(value >= GOOD_PSNR for value in values),
        "good_ssim": sum(value >= GOOD_SSIM for value in alike),
        "psnr": [round(min(value, 200.0), 1) for value in values],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not in the file yet; the record that is written."""
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    record |= {"measured": datetime.date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}
    record |= {"seed": options.seed}
    done = {(row["model"], row["batch"], row["attack"]) for row in record["rows"]}
    for name in options.models:
        case = CASES[name]
        sizes = [*(options.sizes or case.sizes)]
        wanted = [(size, spec) for size in sizes for spec in options.attacks if (name, size, spec) not in done]
        if not wanted:
            continue
        images, y, inputs = _images(case, max(sizes) * options.batches)
        victim, x = _victim(name, case, inputs, options), inputs.normalise(images)
        for size, spec in wanted:
            first = spec == options.attacks[0]
            seconds = options.most_seconds if first else _as_long(record, name, size, options.attacks[0])
            batches = [slice(size * i, size * (i + 1)) for i in range(options.batches)]
            each = [attacked(spec, victim, x[one], y[one], images[one], seconds) for one in batches]
            row = {"model": name, "steps": case.steps, "batch": size, "attack": spec, **summary(each)}
            logger.info("%s", json.dumps({**row, "each": None}))
            record["rows"].append(row | {"each": each})
            options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _as_long(record: dict[str, Any], name: str, size: int, spec: str) -> float:
    """Seconds of the clock that an attack took on a batch of this size, a second at least."""
    rows = [row for row in record["rows"] if (row["model"], row["batch"], row["attack"]) == (name, size, spec)]
    return max([1.0, *(one["seconds"] for row in rows for one in row["each"])])


def _images(case: Case, count: int) -> tuple[Tensor, Tensor, InputSpec]:
    """Images in [0, 1], their labels, the input domain."""
    if not case.photographs:
        return first_images(count)[1:]
    return torch.stack([*photographs(count)]), torch.arange(count) * 7 % IMAGENET.classes, IMAGENET


def summary(each: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table: of several batches sums, medians and the longest time."""
    values = sorted(value for row in each for value in row.get("psnr", []))
    return {
        "batches": len(each),
        "good_psnr": sum(row["good_psnr"] for row in each),
        "good_ssim": sum(row["good_ssim"] for row in each),
        "median_psnr": round(statistics.median(values), 1) if values else None,
        "cpu_seconds": max(row["cpu_seconds"] for row in each),
        "reasons": sorted({row["reason"] for row in each if row["reason"]}),
    }


def table(record: dict[str, Any]) -> str:
    """The table of docs/results/activation-span.md."""
    lines = [
        f"Measured on {record['measured']}.",
        "",
        "| model | training | batch | attack | at 40 dB | at SSIM .6 | median PSNR | CPU s |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        images = row["batch"] * row["batches"]
        training = f"{row['steps']} steps" if row["steps"] else "none"
        median = "–" if row["median_psnr"] is None else f"{row['median_psnr']:.0f}"
        refused = all(one["outcome"] == "not applicable" for one in row["each"])
        counts = f"{row['good_psnr']} of {images} | {row['good_ssim']} of {images} | {median}"
        came = "refused | refused | –" if refused else counts
        lines.append(
            f"| `{row['model']}` | {training} | {row['batch']} | `{row['attack'].partition(':')[0]}` "
            f"| {came} | {row['cpu_seconds']:.1f} |"
        )
    return "\n".join(lines)


def _victim(name: str, case: Case, inputs: InputSpec, options: argparse.Namespace) -> Victim:
    if not case.steps:
        torch.manual_seed(options.seed)
        return Victim(model=case.build(inputs), inputs=inputs, name=name)
    assert inputs is INPUTS, "there is no CIFAR-10 to train on"
    data = cifar10(train=options.train, test=1000, skip=SKIP)
    made = trained(f"benchmarks.activation_span:{name}", data, steps=case.steps, seed=options.seed, cache=options.cache)
    logger.info("%s after %d steps: accuracy %.3f", name, case.steps, made.accuracy)
    return Victim(model=made.model, inputs=inputs, name=name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--sizes", nargs="+", type=int, help="images of a batch; each model's own unless given")
    parser.add_argument("--batches", type=int, default=1, help="of each size")
    parser.add_argument(
        "--attacks",
        nargs="+",
        default=["activation-span", "spear:most_images=160", "inverting-gradients:iterations=100000"],
        help="attack specs; the others get the seconds of the first",
    )
    parser.add_argument("--most-seconds", type=float, default=900.0, help="of the first attack on a batch")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    parser.add_argument("--cache", type=Path, help="folder of weights")
    parser.add_argument("--out", type=Path, default=Path("activation-span.json"), help="JSON file, continued")
    parser.add_argument("--table", type=Path, help="page whose table is written")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    record = measure(options)
    if options.table:
        write_between(options.table, "figures", table(record))


if __name__ == "__main__":
    main()
