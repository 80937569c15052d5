"""Flower's `flowertune-vit` shape: a frozen ViT-B/16 at 224x224, whose head of 102 classes alone is trained.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/heads_at_224.py --out docs/results/heads-224.json

The trunk is untrained: weights of a trained one are not at hand here. One gradient of a batch of 1, 8 or 32 images, in
float32: labels, features of each image, and which of all images at hand its features are nearest to. For one image a
search through the trunk for --steps steps. CPU seconds of this process. Rows that are in --out are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import vit_b_16

import command_line
from fl_precode import Victim
from fl_precode.attacks import FeatureInversion, Reason, build_attack
from fl_precode.metrics import psnr, ssim
from fl_precode.models.input_spec import InputSpec
from heads import cifar100, seen_of
from page_tables import write_between
from transformers import photographs

SPEC = InputSpec(channels=3, height=224, width=224, classes=102, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SAME = 1e-2


def images_at_hand(count: int) -> Tensor:
    """Photographs at 224x224, and small images enlarged to it, in [0, 1]."""
    large = torch.stack(list(photographs(10)))
    small = cifar100()[0][: count - len(large)]
    enlarged = nn.functional.interpolate(small, size=(224, 224), mode="bicubic", antialias=True)
    return torch.cat([large, enlarged]).clamp(0, 1)


def network(seed: int) -> nn.Module:
    """Frozen but for a fresh head."""
    torch.manual_seed(seed)
    model = vit_b_16(weights=None).requires_grad_(False)
    model.heads = nn.Linear(768, SPEC.classes)
    return model.eval()


def features(model: nn.Module, images: Tensor) -> Tensor:
    """What enters the head, (n, 768)."""
    caught: list[Tensor] = []
    handle = model.heads.register_forward_pre_hook(lambda _, given: caught.append(given[0].double()))
    with torch.no_grad():
        for part in SPEC.normalise(images).split(8):
            model(part)
    handle.remove()
    return torch.cat(caught)


def read(model: nn.Module, images: Tensor, everything: Tensor, size: int, seed: int) -> dict[str, Any]:
    """Labels, features and names of one batch, the first images at hand."""
    x, y = SPEC.normalise(images[:size]), torch.randint(102, (size,), generator=torch.Generator().manual_seed(seed))
    victim, seen = Victim(model=model, inputs=SPEC), seen_of(model, x, y)
    began = time.process_time()
    got = FeatureInversion().features(victim, seen, torch.Generator().manual_seed(seed))
    row: dict[str, Any] = {"cpu_seconds": round(time.process_time() - began, 1)}
    if isinstance(got, Reason):
        return row | {"reason": str(got), "codes": list(got.codes)}
    found, truth = got.found, everything[:size]
    error = torch.cdist(truth, found.features).min(dim=1).values / truth.norm(dim=1)
    nearest = torch.cdist(found.features, everything).argmin(dim=1)
    apart = torch.cdist(everything, everything) + 1e9 * torch.eye(len(everything))
    return row | {
        "labels": found.labels is not None and sorted(found.labels.tolist()) == sorted(y.tolist()),
        "residual": found.residual,
        "solved_below": found.solved,
        "determined": found.determined,
        "features": int((error < SAME).sum()),
        "median_error": float(error.median()),
        "candidates": len(everything),
        "identified": len({*range(size)} & {*nearest.tolist()}),
        "nearest_other": float((apart.min(dim=1).values / everything.norm(dim=1)).median()),
    }


def inverted(model: nn.Module, images: Tensor, steps: int, seed: int) -> dict[str, Any]:
    """One image by a search through the trunk."""
    victim = Victim(model=model, inputs=SPEC)
    seen = seen_of(model, SPEC.normalise(images[:1]), torch.tensor([3]))
    began = time.process_time()
    (found,) = build_attack(f"feature-inversion:steps={steps}")(
        victim, [seen], generator=torch.Generator().manual_seed(seed)
    )
    restored = SPEC.denormalise(found.inputs).clamp(0, 1)
    return {
        "cpu_seconds": round(time.process_time() - began, 1),
        "reason": str(found.reason),
        "psnr": float(psnr(restored, images[:1])),
        "ssim": float(ssim(restored, images[:1])),
    }


def table(record: dict[str, Any]) -> str:
    """That of docs/results/heads.md."""
    lines = [
        "| batch | labels | residual | features to 1 % | known to be | median error | named | CPU s |",
        "| ---: | --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for row in record["rows"]:
        size = row["case"].get("images")
        if size is None:
            continue
        if "reason" in row:
            lines.append(f"| {size} | `{row['codes'][0]}` | | | | | | {row['cpu_seconds']} |")
            continue
        cells = [
            size, "right" if row["labels"] else "wrong", f"{row['residual']:.0e}", row["features"], row["determined"],
            f"{row['median_error']:.0e}", f"{row['identified']} of {size}, among {row['candidates']} images",
            row["cpu_seconds"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 8, 32], help="images of a batch")
    parser.add_argument("--candidates", type=int, default=96, help="images at hand, those of the batch included")
    parser.add_argument("--steps", type=int, default=40, help="of the search for one image")
    parser.add_argument("--table", type=Path, help="page whose table is replaced")
    options = command_line.parse(parser)
    model, images = network(options.seed), images_at_hand(options.candidates)
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {"rows": []}
    rows, done = known["rows"], [row["case"] for row in known["rows"]]
    everything: Tensor | None = None
    for part, number in (*(("features", size) for size in options.sizes), ("image", options.steps)):
        case = {"part": part, "images" if part == "features" else "steps": number}
        if case in done:
            continue
        if part == "image":
            row = inverted(model, images, number, options.seed)
        else:
            everything = features(model, images) if everything is None else everything
            row = read(model, images, everything, number, options.seed)
        rows.append({"case": case, **row})
        record = {"measured": date.today().isoformat(), "torch": torch.__version__, "seed": options.seed, "rows": rows}
        command_line.write_record(record, options)
        known = record
    if options.table:
        write_between(options.table, "heads at 224", table(known))


if __name__ == "__main__":
    main()
