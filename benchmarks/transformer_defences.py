"""Where does each defence break patch-embedding on a ViT, and activation-span on an MLP?

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.transformer_defences --out docs/results/transformer-defences.json \
        --page docs/results/transformers.md

``vit``: a ViT-S/16 in timm's shape at 224x224, one gradient of one photograph, the attack told of nothing but what a
server is told. ``mlp``: 3072-1024-1024-10 with tanh, one gradient of 16 images of CIFAR-10; an image counts at 40 dB.
Both untrained, float32. Relative noise has a share of each tensor's root mean square as its standard deviation; noise
as a defence has it in absolute numbers. What stands in the file under the same settings is not measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from attacker.optim.deadline import within
from attacker.simulate import observe, observe_training
from benchmarks.activation_span import tanh
from benchmarks.images import first_images
from benchmarks.page_tables import write_between
from benchmarks.transformers import changed, inputs_of, victim_of
from fl_precode import Observation, Protocol, Victim
from fl_precode.attacks import build_attack
from fl_precode.defences.registry import apply_defence, gradient_defence
from fl_precode.metrics import psnr, ssim

logger = logging.getLogger("transformer-defences")

IN_THE_MODEL: Final = ("precode", "cvb", "dropout:p=0.5")
ROUNDED: Final = ("float16", "bfloat16")
RELATIVE: Final = tuple(f"noise={share}" for share in ("1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1"))
ON_GRADIENTS: Final = (
    *(f"noise:std={std}" for std in ("1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1")),
    *(f"prune:share={share}" for share in ("0.5", "0.9", "0.99")),
    "clip:max_norm=1",
    "dp:max_norm=1,noise_multiplier=0.001",
    "dp:max_norm=1,noise_multiplier=1.1",
    "quantise:bits=8",
    "sign",
)
TRAINED: Final = ("sgd", "adam", "adam, not announced")
DEFENCES: Final = ("none", *IN_THE_MODEL, *ROUNDED, *RELATIVE, *ON_GRADIENTS, *TRAINED)
ATTACKS: Final = {"vit": "patch-embedding", "mlp": "activation-span"}
SECONDS: Final = 20.0
"""Of the search of activation-span, whether it is at its end or not."""


def defended(victim: Victim, defence: str) -> Victim:
    """The victim with the defence in its model.

    Raises:
        ValueError: If the defence has no place in it.
    """
    if defence not in IN_THE_MODEL:
        return victim
    model = apply_defence(defence, victim.model, victim.inputs, seed=0)
    return Victim(model=model, inputs=victim.inputs, name=victim.name)


def sent(victim: Victim, x: Tensor, labels: Tensor, defence: str) -> Observation:
    """What a client sends."""
    if defence in TRAINED:
        optimiser = "sgd" if defence == "sgd" else "adam"
        protocol = Protocol(name="fedavg", local_steps=1, learning_rate=1e-3, optimiser=optimiser)
        seen = observe_training(victim, [(x, labels)], batch_size=len(x), protocol=protocol)
        announced = None if "not announced" in defence else protocol.optimiser
        return replace(seen, protocol=replace(protocol, optimiser=announced))
    victim.model.train(defence.startswith("dropout"))
    torch.manual_seed(0)
    seeded = partial(torch.Generator().manual_seed)
    (seen,) = observe(victim, x, labels, batch_size=len(x), noise=seeded)
    victim.model.eval()
    if defence in (*ROUNDED, *RELATIVE):
        return changed(seen, defence)
    chain = None if defence in ("none", *IN_THE_MODEL) else gradient_defence(defence)
    if chain is None:
        return seen
    random = torch.Generator().manual_seed(0)
    return replace(seen, update=chain(seen.update, generator=random, model=victim.model, batch=(x, labels)))


def attacked(victim: Victim, seen: Observation, images: Tensor, attack: str) -> dict[str, Any]:
    """What was reconstructed of one update: PSNR and SSIM of each image with the nearest true one."""
    began = time.process_time()
    with within(SECONDS):
        (found,) = build_attack(attack)(victim, [seen], generator=torch.Generator().manual_seed(0))
    row: dict[str, Any] = {
        "cpu_seconds": round(time.process_time() - began, 2),
        "outcome": found.outcome.value,
        "reason": str(found.reason),
        "codes": list(found.reason_codes),
        "psnr": [],
        "ssim": [],
    }
    if found.inputs is not None:
        came = [image for image in found.inputs if bool(image.isfinite().all())]
        restored = victim.inputs.denormalise(victim.inputs.clamp(torch.stack(came))) if came else images[:0]
        for image in restored:
            one = image[None].expand(len(images), -1, -1, -1)
            row["psnr"].append(round(float(psnr(one, images).max()), 1))
            row["ssim"].append(round(float(ssim(one, images).max()), 3))
    return row


def subjects(name: str, count: int) -> tuple[Victim, list[tuple[Tensor, Tensor]]]:
    """The victim and its batches of images in [0, 1] and labels."""
    if name == "vit":
        victim = victim_of("vit_small_16", 0)
        images = inputs_of(victim.inputs, count)
        return victim, [(image[None], torch.tensor([number])) for number, image in enumerate(images)]
    torch.manual_seed(0)
    _, x, labels, inputs = first_images(16)
    return Victim(model=tanh(inputs), inputs=inputs, name="mlp"), [(x, labels)]


def rows_of(name: str, wanted: list[str], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each defence."""
    plain, batches = subjects(name, options.images)
    for defence in wanted:
        row: dict[str, Any] = {"subject": name, "defence": defence, "each": []}
        try:
            victim = defended(plain, defence)
        except ValueError as error:
            row["impossible"] = str(error)
        else:
            for images, labels in batches:
                seen = sent(victim, victim.inputs.normalise(images), labels, defence)
                row["each"].append(attacked(victim, seen, images, ATTACKS[name]))
        logger.info("%s, %s: %s", name, defence, row.get("impossible", row["each"]))
        yield row


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not in the file yet; the record, which is written after each row."""
    settings = {"images": options.images, "torch": torch.__version__}
    record: dict[str, Any] = {"measured": time.strftime("%Y-%m-%d"), "settings": settings, "rows": []}
    if options.out.exists():
        earlier = json.loads(options.out.read_text(encoding="utf-8"))
        record = earlier if earlier["settings"] == settings else record
    for name in options.subjects:
        done = {row["defence"] for row in record["rows"] if row["subject"] == name}
        if wanted := [defence for defence in options.defences if defence not in done]:
            for row in rows_of(name, wanted, options):
                record["rows"].append(row)
                options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def cell(row: dict[str, Any] | None) -> str:
    """What became of one attack under one defence."""
    if row is None:
        return ""
    if "impossible" in row:
        return "has no place in this model"
    values = [value for one in row["each"] for value in one["psnr"]]
    if not values:
        codes = sorted({code for one in row["each"] for code in one["codes"]})
        return f"nothing ({', '.join(f'`{code}`' for code in codes) or row['each'][0]['outcome']})"
    good = sum(value >= 0.6 for one in row["each"] for value in one["ssim"])
    converged = sum(one["outcome"] == "converged" for one in row["each"])
    spread = f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
    if row["subject"] == "mlp":
        exact = sum(value >= 40 for value in values)
        return f"{len(values)} images found, {exact} at 40 dB; {spread}"
    return f"{spread}; {good} of {len(row['each'])} at SSIM .6, {converged} called exact"


def table(record: dict[str, Any]) -> str:
    """The table of docs/results/transformers.md."""
    by_place = {(row["subject"], row["defence"]): row for row in record["rows"]}
    lines = [
        f"Measured on {record['measured']} with PyTorch {record['settings']['torch']}. PSNR in dB, median (min to "
        "max).\n",
        f"| defence | `patch-embedding`, ViT-S/16 at 224, {record['settings']['images']} photographs, one each "
        "| `activation-span`, MLP with tanh, 16 images |",
        "| --- | --- | --- |",
    ]
    for defence in dict.fromkeys(row["defence"] for row in record["rows"]):
        told = f"noise, {defence.removeprefix('noise=')} of each tensor" if defence in RELATIVE else f"`{defence}`"
        told = f"one local step, {defence}" if defence in TRAINED else told
        lines.append(f"| {told} | {cell(by_place.get(('vit', defence)))} | {cell(by_place.get(('mlp', defence)))} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("transformer-defences.json"), help="file to go on with")
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    parser.add_argument("--subjects", nargs="*", choices=tuple(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--defences", nargs="+", default=list(DEFENCES))
    parser.add_argument("--images", type=int, default=4, help="photographs of the vision transformer")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    record = measure(options)
    if options.page:
        write_between(options.page, "transformer-defences", table(record))


if __name__ == "__main__":
    main()
